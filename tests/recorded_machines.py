"""Machines that a device picker can show anywhere: what they have, what it does and for whom, written down. For tests, cells and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ice_notebook.devices.holders import Holder, Use, Whose
from ice_notebook.devices.machine import Gpu, Inventory, visible_gpus
from ice_notebook.devices.readings import GpuProcess, Reading

GIB = 1 << 30


@dataclass
class Recorded:
    """A source of a picker. Its readings may be changed while it is shown; `looks` counts how often it was read."""

    machine: Inventory
    uses: dict[str, Use] = field(default_factory=dict)
    label: str = "a recorded machine"
    looks: int = 0

    def inventory(self) -> Inventory:
        return self.machine

    def look(self, gpus: Iterable[Gpu]) -> Mapping[str, Use]:
        self.looks += 1
        return {gpu.uuid: self.uses.get(gpu.uuid, Use(Reading())) for gpu in gpus}


def board(number: int, name: str = "NVIDIA H200", gib: float = 139.8) -> Gpu:
    return Gpu(uuid=f"GPU-{number}f3a91c2-aaaa", name=name, memory_bytes=int(gib * GIB), board=number)


def instance(number: int, on_board: int = 0) -> Gpu:
    return Gpu(
        uuid=f"MIG-{on_board}{number}5e77", name="NVIDIA H200 MIG 1g.18gb", memory_bytes=16 * GIB, board=on_board, instance=number
    )


def reading(gib: float, load: int | None = 0, celsius: int | None = 34, watts: float | None = 76) -> Reading:
    return Reading(int(gib * GIB), load, celsius, watts, None if watts is None else 700.0, ())


def use(gib: float, load: int | None, celsius: int, watts: float, *who: Holder, runs: tuple[str, ...] = ()) -> Use:
    told = replace(reading(gib, load, celsius, watts), processes=tuple(GpuProcess(one.pid, one.memory_bytes) for one in who))
    return Use(told, holders=who, runs=runs)


def user(name: str, gib: float, command: str = "python", pid: int = 4711) -> Holder:
    return Holder(Whose.USER, pid, int(gib * GIB), user=name, command=command)


TRAIN = "train(launcher, epochs=3)"


def eight() -> Recorded:
    """Eight GPUs: some free, some with others' processes, two with a run of this user."""
    gpus = tuple(board(n) for n in range(8))
    ours = Holder(Whose.RUN, 5120, int(70.4 * GIB), run=TRAIN)
    crowd = [user(name, size, pid=6000 + i) for i, (name, size) in enumerate([("bob", 9.5), ("carol", 8.2), ("dave", 4.0)])]
    crowd += [user("erin", 2.1, "jupyter-lab", 6100), user("frank", 1.4, "python3.11", 6101), user("grace", 0.6, "nsys", 6102)]
    uses = [
        use(0.0, 0, 33, 76),
        use(131.2, 97, 71, 654, user("alice", 122.9), user("alice", 8.1, "tensorboard", 4712)),
        use(0.6, 0, 34, 78, Holder(Whose.NOTEBOOK, 4000, int(0.6 * GIB))),
        use(71.0, 88, 66, 590, ours, runs=(TRAIN,)),
        use(70.8, 86, 65, 588, replace(ours, pid=5121), runs=(TRAIN,)),
        use(26.0, 31, 49, 242, *crowd),
        use(61.3, 4, 41, 118, Holder(Whose.UNKNOWN, 99, int(61 * GIB))),
        use(0.0, 0, 32, 75),
    ]
    return Recorded(
        Inventory(gpus=gpus, n_cores=192), dict(zip((gpu.uuid for gpu in gpus), uses, strict=True)), "recorded: eight H200"
    )


def masked(variable: str = "5,6") -> Recorded:
    """The same machine, seen through CUDA_VISIBLE_DEVICES."""
    whole = eight()
    seen = replace(whole.machine, cuda_visible_devices=variable)
    assert len(visible_gpus(variable, seen.gpus)) == len(seen.visible)
    return replace(whole, machine=seen)


def with_mig() -> Recorded:
    """A board in three instances, and one whole."""
    gpus = (instance(0), instance(1), instance(2), board(1))
    uses = [use(0.1, None, 45, 210), use(12.3, None, 45, 210, user("alice", 12.2)), use(0.1, None, 45, 210), use(0.0, 0, 33, 76)]
    return Recorded(Inventory(gpus=gpus, n_cores=64), dict(zip((gpu.uuid for gpu in gpus), uses, strict=True)))


def reticent() -> Recorded:
    """A GPU of which the driver says nothing."""
    return Recorded(Inventory(gpus=(board(0, "NVIDIA GB10", 0),), n_cores=20))


def without_gpus() -> Recorded:
    return Recorded(Inventory(n_cores=4, problem="this machine has no NVIDIA driver"), label="")
