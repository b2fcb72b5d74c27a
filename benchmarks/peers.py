"""The launchers that are compared, each as the cells that a user of it writes."""

from __future__ import annotations

import inspect
import socket
import textwrap
import uuid
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.work import Work

N_RANKS = 2


class Peer(Protocol):
    """A launcher. `setup` is the cell that a notebook begins with."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def setup(self) -> str: ...
    @property
    def returns_values(self) -> bool: ...
    @property
    def can_restart(self) -> bool: ...

    def launch(self, work: Work, args: tuple[Any, ...], *, group: bool = True, max_restarts: int = 0) -> str:
        """Return the cell that launches the work on two CPU ranks. `group`: the work needs a process group."""

    def launch_for_values(self, work: Work, args: tuple[Any, ...]) -> str:
        """Return code that launches the work and binds `values`, the ranks' values by rank."""


@dataclass(frozen=True)
class Ours:
    """A cell with our magic; the process group is made before the function, as by default."""

    name: str = "ours"
    title: str = "ice_notebook"
    setup: str = "%load_ext ice_notebook"
    returns_values: bool = True
    can_restart: bool = True
    options: str = ""  # more of the magic's line

    def launch(self, work: Work, args: tuple[Any, ...], *, group: bool = True, max_restarts: int = 0) -> str:
        restarts = f" max_restarts={max_restarts}" if max_restarts else ""
        return f"%%elastic_launch {self._line(args, group=group)}{restarts}\n{source_of(work)}"

    def launch_for_values(self, work: Work, args: tuple[Any, ...]) -> str:
        magic = f"get_ipython().run_cell_magic('elastic_launch', {self._line(args, group=False)!r}, {source_of(work)!r})"
        opening = "_opening = time.time()\nvalues = dict(run.results)\nopening_s = time.time() - _opening"
        return f"{magic}\n{opening}"

    def _line(self, args: tuple[Any, ...], *, group: bool) -> str:
        return f"devices=cpu:0-{N_RANKS - 1} -o run args={args!r}{self.options}" + ("" if group else " dist_init=no")


@dataclass(frozen=True)
class Spawn:
    """torch's own elastic launcher, called in the kernel with `start_method="spawn"`."""

    name: str = "spawn"
    title: str = "torch spawn"
    setup: str = "from torch.distributed.launcher.api import LaunchConfig, elastic_launch\nfrom benchmarks import work"
    returns_values: bool = True
    can_restart: bool = True

    def launch(self, work: Work, args: tuple[Any, ...], *, group: bool = True, max_restarts: int = 0) -> str:  # noqa: ARG002
        config = (
            f"LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node={N_RANKS}, start_method='spawn', max_restarts={max_restarts}, "
            f"rdzv_backend='c10d', rdzv_endpoint='localhost:0', run_id='{uuid.uuid4().hex}')"
        )
        return f"values = elastic_launch({config}, work.{work.__name__})(*{args!r})"

    def launch_for_values(self, work: Work, args: tuple[Any, ...]) -> str:
        return f"{self.launch(work, args)}\nopening_s = 0.0"


class WithoutValues:
    """The part of a peer that brings no values back by itself: nobody asks it for any."""

    title: str

    def launch_for_values(self, work: Work, args: tuple[Any, ...]) -> str:
        raise NotImplementedError(f"{self.title} returns no values ({work.__name__}{args!r})")


@dataclass(frozen=True)
class Accelerate(WithoutValues):
    """accelerate's `notebook_launcher`, which forks the kernel. It has no way to return values."""

    name: str = "accelerate"
    title: str = "accelerate (fork)"
    setup: str = "from accelerate import notebook_launcher"
    returns_values: bool = False
    can_restart: bool = True

    def launch(self, work: Work, args: tuple[Any, ...], *, group: bool = True, max_restarts: int = 0) -> str:  # noqa: ARG002
        options = f"num_processes={N_RANKS}, max_restarts={max_restarts}, use_port='{free_port()}'"
        call = f"notebook_launcher({work.__name__}, args={args!r}, {options})"
        return f"{source_of(work)}\n{call}"


OURS: Peer = Ours()
FORKED: Peer = Ours("forked", "with the fork server", options=" start_method=forkserver")
PEERS: tuple[Peer, ...] = (OURS, Spawn(), Accelerate())


def source_of(work: Work) -> str:
    """Return the text of a function of `work`, as it stands in a cell."""
    return textwrap.dedent(inspect.getsource(work))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
