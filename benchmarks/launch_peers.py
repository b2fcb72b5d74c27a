"""Launchers that are compared in launches only: a script that torchrun starts, and a pool of engines. Neither brings values back by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.peers import N_RANKS, Peer, WithoutValues, free_port, source_of
from benchmarks.work import Work


@dataclass(frozen=True)
class Torchrun(WithoutValues):
    """The function written to a script, and torchrun called from the cell."""

    name: str = "torchrun"
    title: str = "torchrun, a script"
    setup: str = "import sys\nfrom pathlib import Path"
    returns_values: bool = False
    can_restart: bool = True

    def launch(self, work: Work, args: tuple[Any, ...], *, group: bool = True, max_restarts: int = 0) -> str:  # noqa: ARG002
        script = f"{source_of(work)}\n{work.__name__}(*{args!r})\n"
        options = f"--standalone --nproc-per-node {N_RANKS} --max-restarts {max_restarts}"
        return f"_ = Path('train.py').write_text({script!r})\n!{{sys.executable}} -m torch.distributed.run {options} train.py"


@dataclass(frozen=True)
class Ipyparallel(WithoutValues):
    """ipyparallel's `%%px` on engines that are started once, have imported torch and stay: its ranks are not fresh, and none is restarted."""

    name: str = "ipyparallel"
    title: str = "ipyparallel (engines stay)"
    setup: str = (
        "import ipyparallel\n"
        f"client = ipyparallel.Cluster(n={N_RANKS}).start_and_connect_sync()\n"
        "engines = client[:]\n"
        "def take_rank(rank):\n"
        "    import os\n"
        f"    os.environ.update(MASTER_ADDR='127.0.0.1', WORLD_SIZE='{N_RANKS}', RANK=str(rank))\n"
        "    import torch.distributed\n"
        f"engines.map_sync(take_rank, range({N_RANKS}))\n"
        "engines.activate()"
    )
    returns_values: bool = False
    can_restart: bool = False

    def launch(self, work: Work, args: tuple[Any, ...], *, group: bool = True, max_restarts: int = 0) -> str:  # noqa: ARG002
        if max_restarts:
            raise NotImplementedError(f"{self.title} restarts nothing")
        place = f"import os\nos.environ['MASTER_PORT'] = '{free_port()}'"
        return f"%%px --block\n{place}\n{source_of(work)}\n{work.__name__}(*{args!r})"


TORCHRUN: Peer = Torchrun()
IPYPARALLEL: Peer = Ipyparallel()
