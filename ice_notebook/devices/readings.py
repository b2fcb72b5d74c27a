"""What GPUs do at this moment: memory, load, temperature, power and processes, read through NVML without touching CUDA.

Apart from `machine`, so that a launch which does not ask for free devices does not pay for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ice_notebook.devices.machine import Gpu, load_nvml


@dataclass(frozen=True)
class GpuProcess:
    """A process that computes on a GPU, as the driver names it: in a container that may be the number of another namespace."""

    pid: int
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Reading:
    """One GPU at one moment. None is what the driver does not say of this GPU, or not to this user."""

    memory_used_bytes: int | None = None
    load_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    processes: tuple[GpuProcess, ...] | None = None


def read_now(gpus: Iterable[Gpu], nvml: Any = None) -> dict[str, Reading]:
    """Return what GPUs do now, by UUID. What cannot be read is None in its reading. `nvml` is the module `pynvml`."""
    nvml = nvml or load_nvml()
    if isinstance(nvml, str):
        return {gpu.uuid: Reading() for gpu in gpus}
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return {gpu.uuid: Reading() for gpu in gpus}
    try:
        return {gpu.uuid: _read(nvml, gpu) for gpu in gpus}
    finally:
        nvml.nvmlShutdown()


def _read(nvml: Any, gpu: Gpu) -> Reading:
    def ask(question: Callable[..., Any], *args: Any) -> Any:
        try:
            return question(*args)
        except nvml.NVMLError:  # not supported by this GPU, not permitted to this user, or the GPU is lost
            return None

    handle = ask(nvml.nvmlDeviceGetHandleByUUID, gpu.uuid)
    if handle is None:
        return Reading()
    # Temperature and power belong to the board also when an instance of it is meant; an instance's load is not measured.
    board = ask(nvml.nvmlDeviceGetHandleByIndex, gpu.board) if gpu.is_mig else handle
    load = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
    power, limit = ask(nvml.nvmlDeviceGetPowerUsage, board), ask(nvml.nvmlDeviceGetEnforcedPowerLimit, board)
    # By its version: without one, pynvml meets a driver older than 510 with an exception that is no NVMLError.
    running = ask(nvml.nvmlDeviceGetComputeRunningProcesses_v3, handle)
    return Reading(
        memory_used_bytes=_memory_used(nvml, ask, handle),
        load_percent=None if load is None else int(load.gpu),
        temperature_c=ask(nvml.nvmlDeviceGetTemperature, board, nvml.NVML_TEMPERATURE_GPU),
        power_w=None if power is None else power / 1000,
        power_limit_w=None if limit is None else limit / 1000,
        processes=None if running is None else tuple(_process(found) for found in running),
    )


def _memory_used(nvml: Any, ask: Callable[..., Any], handle: Any) -> int | None:
    # The second version leaves out what the driver keeps for itself, 0.6 GiB of an H200: an idle GPU has nothing used. Older drivers
    # know the first one only.
    found = ask(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2) or ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    return None if found is None else int(found.used)


def _process(found: Any) -> GpuProcess:
    memory = found.usedGpuMemory  # None where it is not known
    return GpuProcess(pid=int(found.pid), memory_bytes=None if memory is None else int(memory))
