"""The launcher as a rank or an eager process sees it: who am I, on which device, in which run. Runs in ranks and in the kernel.

All is read from the environment at the time of asking, so that a DataLoader worker or any other child of a rank answers like its rank.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from ice_notebook.context.progress import Progress, eager_progress

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

RUN_ID = "ICE_NOTEBOOK_RUN_ID"  # set in every rank, and in what it starts
ASSIGNED_DEVICE = "ICE_NOTEBOOK_ASSIGNED_DEVICE"
DEVICES = "ICE_NOTEBOOK_DEVICES"  # physical names of this node's ranks, comma-separated
DIST_BACKEND = "ICE_NOTEBOOK_DIST_BACKEND"


class Context:
    """The properties that ice-learn's launcher has, with its names, as a process answers that is rank 0 of 1."""

    @property
    def rank(self) -> int:
        """Return the global rank, 0 to `world_size - 1`."""
        return 0

    @property
    def local_rank(self) -> int:
        """Return the rank on this node."""
        return 0

    @property
    def world_size(self) -> int:
        """Return the number of ranks of all nodes."""
        return 1

    @property
    def local_world_size(self) -> int:
        """Return the number of ranks of this node."""
        return 1

    @property
    def group_rank(self) -> int:
        """Return the rank of this node among the nodes."""
        return 0

    @property
    def group_world_size(self) -> int:
        """Return the number of nodes."""
        return 1

    @property
    def role_rank(self) -> int:
        """Return the rank among the ranks with the same role."""
        return 0

    @property
    def role_name(self) -> str:
        """Return the role, as the option `role` says."""
        return "default"

    @property
    def role_world_size(self) -> int:
        """Return the number of ranks with the same role."""
        return 1

    @property
    def master_addr(self) -> str:
        """Return the address of the store through which the ranks meet."""
        return "127.0.0.1"

    @property
    def master_port(self) -> int:
        """Return the port of that store; 0 where there is none."""
        return 0

    @property
    def restart_count(self) -> int:
        """Return how often the worker group was started again after a failure."""
        return 0

    @property
    def max_restarts(self) -> int:
        """Return how often it may be."""
        return 0

    @property
    def rdzv_id(self) -> str:
        """Return the rendezvous id that the user gave, else `none`."""
        return "none"

    @property
    def devices(self) -> tuple[str, ...]:
        """Return the physical names of this node's devices, one a rank, in the order of the local ranks."""
        return (str(self.assigned_device),)

    @property
    def assigned_device(self) -> torch.device:
        """Return the current GPU if there is one, else the CPU: `model.to(launcher.assigned_device)`."""
        import torch  # noqa: PLC0415 - asked for by somebody who is about to use it

        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    @property
    def dist_backend(self) -> str:
        """Return the backend of the default process group: nccl, gloo or mpi."""
        return "nccl" if self.assigned_device.type == "cuda" else "gloo"

    @property
    def eager_mode(self) -> bool:
        """Return whether this is no rank, but a process of its own that answers as rank 0 of 1."""
        return False

    def progress(self, iterable: Iterable[T], desc: str | None = None, total: int | None = None) -> Iterable[T]:
        """Return the iterable, counting: the run's panel shows how far each rank's loop is. Outside of a rank it is a bar of tqdm's.

        Args:
            iterable: what the loop is over; `len()` works as it does there.
            desc: what is counted, shown beside the bar: `epoch 3`.
            total: how many there will be, where the iterable does not say.
        """
        return eager_progress(iterable, desc, total)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, complex) or hasattr(type(other), "__index__") or hasattr(type(other), "__float__"):
            from ice_notebook.errors import LauncherValueError  # noqa: PLC0415 - a mistake is being made

            # `def main(rank): if rank == 0: …` would be false on every rank, without a word.
            raise LauncherValueError.compared(other)
        return self is other

    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        # Wherever a launcher arrives, it is the one of that place.
        return get_current_launcher, ()


class EagerContext(Context):
    """Rank 0 of 1: the process that is not a rank, so that a function for ranks can be tried in the notebook itself."""

    @property
    def eager_mode(self) -> bool:
        """Return True."""
        return True

    def __repr__(self) -> str:
        return "<launcher: eager, rank 0 of 1>"


class RankContext(Context):
    """A rank's own launcher."""

    @property
    def rank(self) -> int:
        """Return the global rank, 0 to `world_size - 1`."""
        return int(os.environ["RANK"])

    @property
    def local_rank(self) -> int:
        """Return the rank on this node."""
        return int(os.environ["LOCAL_RANK"])

    @property
    def world_size(self) -> int:
        """Return the number of ranks of all nodes."""
        return int(os.environ["WORLD_SIZE"])

    @property
    def local_world_size(self) -> int:
        """Return the number of ranks of this node."""
        return int(os.environ["LOCAL_WORLD_SIZE"])

    @property
    def group_rank(self) -> int:
        """Return the rank of this node among the nodes."""
        return int(os.environ["GROUP_RANK"])

    @property
    def group_world_size(self) -> int:
        """Return the number of nodes."""
        return int(os.environ["GROUP_WORLD_SIZE"])

    @property
    def role_rank(self) -> int:
        """Return the rank among the ranks with the same role."""
        return int(os.environ["ROLE_RANK"])

    @property
    def role_name(self) -> str:
        """Return the role, as the option `role` says."""
        return os.environ["ROLE_NAME"]

    @property
    def role_world_size(self) -> int:
        """Return the number of ranks with the same role."""
        return int(os.environ["ROLE_WORLD_SIZE"])

    @property
    def master_addr(self) -> str:
        """Return the address of the store through which the ranks meet."""
        return os.environ["MASTER_ADDR"]

    @property
    def master_port(self) -> int:
        """Return the port of that store."""
        return int(os.environ["MASTER_PORT"])

    @property
    def restart_count(self) -> int:
        """Return how often the worker group was started again after a failure."""
        return int(os.environ["TORCHELASTIC_RESTART_COUNT"])

    @property
    def max_restarts(self) -> int:
        """Return how often it may be."""
        return int(os.environ["TORCHELASTIC_MAX_RESTARTS"])

    @property
    def rdzv_id(self) -> str:
        """Return the rendezvous id that the user gave, else `none`."""
        return os.environ["TORCHELASTIC_RUN_ID"]

    @property
    def devices(self) -> tuple[str, ...]:
        """Return the physical names of this node's devices, one a rank, in the order of the local ranks."""
        return tuple(os.environ[DEVICES].split(","))

    @property
    def assigned_device(self) -> torch.device:
        """Return this rank's device as torch names it here: `model.to(launcher.assigned_device)`."""
        import torch  # noqa: PLC0415 - a rank has imported it long ago

        return torch.device(os.environ[ASSIGNED_DEVICE])

    @property
    def dist_backend(self) -> str:
        """Return the backend of the default process group: nccl, gloo or mpi."""
        return os.environ[DIST_BACKEND]

    def progress(self, iterable: Iterable[T], desc: str | None = None, total: int | None = None) -> Iterable[T]:
        """Return the iterable, counting: the run's panel shows how far this rank's loop is, ten times a second.

        Loops inside each other are shown together. Other threads and processes of the rank count for themselves, and tell nobody.
        """
        return Progress(iterable, desc, total)

    def __repr__(self) -> str:
        return f"<launcher: rank {self.rank} of {self.world_size} on {self.devices[self.local_rank]}>"


def is_rank() -> bool:
    """Return whether this process is a rank of a run, or was started by one."""
    return RUN_ID in os.environ and "RANK" in os.environ


def get_current_launcher() -> Context:
    """Return the launcher of this process: in a rank the rank's own, elsewhere one that answers as rank 0 of 1."""
    return RankContext() if is_rank() else EagerContext()
