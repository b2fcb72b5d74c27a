"""How much memory this process has. Runs in the kernel that is measured."""

from __future__ import annotations


def resident_mib() -> float:
    """Return what is resident now, shared pages included."""
    return _read("VmRSS")


def peak_mib() -> float:
    """Return the most that was resident since the last `reset_peak`."""
    return _read("VmHWM")


def reset_peak() -> None:
    """Have the peak counted from now on."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as control:
        control.write("5")


def _read(name: str) -> float:
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith(name))
    return int(line.split()[1]) / 1024
