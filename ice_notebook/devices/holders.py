"""Who uses a GPU: this notebook, a run of ours, a user of this machine, or somebody who cannot be seen from here.

A run's plan says which GPUs it has, from before its first process starts; processes are told by the marker that a run's carry.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

from ice_notebook.devices.machine import Gpu
from ice_notebook.devices.readings import GpuProcess, Reading, read_now
from ice_notebook.errors import format_size, join
from ice_notebook.host import processes
from ice_notebook.runs import upkeep
from ice_notebook.wire import protocol as p

FREE_MEMORY = 0.05  # the part of its memory below which a GPU counts as free: a forgotten context or a desktop, not a training


class Whose(enum.Enum):
    """Whose a process is."""

    NOTEBOOK = "notebook"  # this kernel's own
    RUN = "run"  # of a run that was launched by this user
    USER = "user"
    UNKNOWN = "unknown"  # of another container, or hidden by this machine


@dataclass(frozen=True)
class Holder:
    """A process on a GPU, and whose it is."""

    whose: Whose
    pid: int
    memory_bytes: int | None = None
    user: str = ""
    command: str = ""
    run: str = ""  # what the run runs: train(launcher)

    def __str__(self) -> str:
        """Return it in words: `alice (python, 61 GiB)`."""
        size = format_size(self.memory_bytes) if self.memory_bytes is not None else ""
        facts = ", ".join(filter(None, [self.command if self.whose is Whose.USER else "", size]))
        return f"{self.name} ({facts})" if facts else self.name

    @property
    def name(self) -> str:
        """Return who it is."""
        if self.whose is Whose.NOTEBOOK:
            return "this notebook"
        if self.whose is Whose.RUN:
            return f"your run {self.run}".strip()
        return self.user if self.whose is Whose.USER else "another user or container"


@dataclass(frozen=True)
class Use:
    """What a GPU does now, and for whom."""

    reading: Reading
    holders: tuple[Holder, ...] = ()
    runs: tuple[str, ...] = ()  # what runs on it that this user has launched, also before it has a process there

    def obstacles(self, memory_bytes: int) -> list[str]:
        """Return in words what keeps the GPU from being free; nothing when it is. `memory_bytes` is what it has."""
        found = [f"your run {run}" for run in self.runs]
        found += [str(holder) for holder in self.holders if holder.whose is not Whose.NOTEBOOK and not self._is_told(holder)]
        used = self.reading.memory_used_bytes
        if not found and used is not None and memory_bytes and used >= FREE_MEMORY * memory_bytes:
            own = [str(holder) for holder in self.holders]
            found = own or [f"{format_size(used)} of {format_size(memory_bytes)} in use by who cannot be seen from here"]
        if not found and self.reading.processes is None and (used is None or not memory_bytes):
            found = ["the driver does not say"]
        return found

    def _is_told(self, holder: Holder) -> bool:
        return holder.whose is Whose.RUN and holder.run in self.runs


def look(gpus: Iterable[Gpu]) -> dict[str, Use]:
    """Return what GPUs do now and for whom, by UUID."""
    gpus = tuple(gpus)
    return uses_from_readings(read_now(gpus), upkeep.live_plans()) if gpus else {}


def held(gpus: Iterable[Gpu]) -> dict[str, str]:
    """Return, in words by UUID, who uses those of the GPUs that are not free."""
    gpus = tuple(gpus)
    uses = look(gpus)
    return {gpu.uuid: join(words) for gpu in gpus if (words := uses[gpu.uuid].obstacles(gpu.memory_bytes))}


def uses_from_readings(readings: Mapping[str, Reading], plans: Iterable[p.Plan]) -> dict[str, Use]:
    """Return what the readings say, with the processes told whose they are."""
    plans = tuple(plans)
    runs = {plan.marker: plan.name for plan in plans}
    return {
        uuid: Use(
            reading,
            holders=tuple(find_holder(process, runs) for process in reading.processes or ()),
            runs=tuple(plan.name for plan in plans if uuid in _gpus_of(plan)),
        )
        for uuid, reading in readings.items()
    }


def _gpus_of(plan: p.Plan) -> set[str]:
    """Return the UUIDs of the GPUs that a run has."""
    return {uuid for rank in plan.ranks for uuid in (rank.visible_devices or "").split(",")}


def find_holder(process: GpuProcess, runs: Mapping[str, str]) -> Holder:
    """Return whose a process is. `runs` are the names of those that run now, by their markers."""
    pid, memory = process.pid, process.memory_bytes
    if pid == os.getpid():
        return Holder(Whose.NOTEBOOK, pid, memory)
    if not _uses_a_gpu(pid):
        return Holder(Whose.UNKNOWN, pid, memory)
    marker = processes.marker_of(pid)
    if marker is not None:
        return Holder(Whose.RUN, pid, memory, run=runs.get(marker, ""))
    try:
        found = psutil.Process(pid)
        return Holder(Whose.USER, pid, memory, user=found.username(), command=found.name())
    except psutil.Error:  # gone meanwhile, or hidden
        return Holder(Whose.UNKNOWN, pid, memory)


def _uses_a_gpu(pid: int) -> bool:
    """Return whether the process that has this number here can be the one that the driver means.

    In a container the driver may give numbers of the machine's, which belong to other processes here, or to none. What a process has open
    can be seen only of one's own; others are believed.
    """
    try:
        opened = os.listdir(f"/proc/{pid}/fd")
    except PermissionError:
        return True
    except OSError:
        return False
    return any(_target(f"/proc/{pid}/fd/{number}").startswith(("/dev/nvidia", "/dev/dxg")) for number in opened)


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:  # closed meanwhile
        return ""
