"""A set that stands by, an agent and its ranks, and which launches it is good for."""

from __future__ import annotations

import importlib.machinery
import time

from ice_notebook.errors import join
from ice_notebook.host import inherited, processes
from ice_notebook.kernel.agents import AgentProcess, Imports
from ice_notebook.wire import control as c
from ice_notebook.wire import protocol as p
from ice_notebook.wire.frames import is_readable_within

# Read when a process starts or a library is loaded, by C code among others, which nobody sees doing it.
_EARLY_PREFIXES = (
    *("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "LANG"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "GOTO_", "BLIS_", "VECLIB_", "NUMEXPR_", "NPY_", "DNNL_", "ONEDNN_"),
    *("TORCH_CPP_", "TORCH_SHOW_CPP_", "TORCH_USE_", "ATEN_"),
)
# Looked for by imports, and yet as good later: told to torch by its functions, sent along in another way, or read again when it counts
# (CUDA_VISIBLE_DEVICES: seen on a GPU with torch 2.11).
_LATE = frozenset(
    {"OMP_NUM_THREADS", "TORCH_LOGS", "TORCH_DISTRIBUTED_DEBUG", "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "TZ"}
    | {"PWD", "OLDPWD", "SHLVL", "_", "TERM", "COLUMNS", "LINES"}
)
_FOUND = ("torch", "numpy", "msgspec", "cloudpickle", "ice_notebook")  # packages that must be the launch's own


class Standby:
    """A set that gets ready or is ready."""

    def __init__(self, agent: AgentProcess) -> None:
        self.agent = agent
        self.preparation = agent.preparation
        self.readiness: p.Readiness | None = None  # None: it still imports what every rank needs
        self.imports = Imports(agent.channel)
        self.is_spoiled = False
        self.is_gone = False
        self.n_spares = 0  # ranks for a restart that it has beside those for a launch
        self._at_a_time = agent.preparation.at_a_time

    @property
    def rests(self) -> bool:
        """Return whether it was told to stop getting ready."""
        return self._at_a_time == 0

    @property
    def is_busy(self) -> bool:
        """Return whether its ranks import, whatever it is."""
        return self.readiness is None or bool(self.imports.package)

    @property
    def is_idle(self) -> bool:
        """Return whether a launch would find its ranks waiting."""
        return not self.is_busy

    def pace(self, at_a_time: int | None) -> None:
        """Have so many of its ranks get ready at the same time; None: all."""
        if self._at_a_time != at_a_time:
            self._at_a_time = at_a_time
            self.agent.tell(c.SetPace(at_a_time=at_a_time))

    def add_spares(self, count: int) -> None:
        """Have it get more ranks ready, for a restart of the run that it will do. It can do one meanwhile."""
        self.n_spares = count
        self.agent.tell(c.AddSpares(count=count))

    def look(self) -> None:
        """Take what the agent has said, without waiting."""
        if self.agent.deadline is not None and time.monotonic() >= self.agent.deadline and self.agent.revive():
            self.imports = Imports(self.agent.channel)
        try:
            while not self.is_gone and is_readable_within(self.agent.channel.fileno(), 0.0):
                for message in self.agent.channel.receive_ready():
                    if isinstance(message, c.Ready):
                        self.readiness = message.readiness
                        self.imports.end()
                    elif isinstance(message, c.Spoiled):
                        self.is_spoiled = True
        except (EOFError, OSError):
            self.is_gone = True

    def why_not(self, wanted: p.Preparation, early: frozenset[str] | None) -> str:
        """Return why a launch cannot use it that would be prepared so, in a few words; empty when it can."""
        if self.preparation.start_method != "spawn" and wanted.start_method == "spawn":
            return "start_method changed"
        return why_not(self.preparation, wanted, early)

    def close(self) -> None:
        """End it, and whatever its imports may have started."""
        self.agent.kill()
        self.agent.close()
        processes.sweep(self.preparation.marker)


def wants_forks(asked: p.Plan | p.Preparation) -> bool:
    """Return whether ranks are to be forked."""
    return asked.start_method == "forkserver"


def why_not(mine: p.Preparation, its: p.Preparation, early: frozenset[str] | None) -> str:
    """Return why processes that got ready for one thing cannot be used for another, in a few words; empty when they can.

    Args:
        mine: what they were started with.
        its: what a launch wants.
        early: names of variables that imports have looked for; None when that is not known, and each may be one.
    """
    if mine.interpreter != its.interpreter:
        return "another interpreter"
    if reason := inherited.why_not(mine.inherited, its.inherited):
        return reason
    if (mine.boot_path, mine.pins) != (its.boot_path, its.pins) and (elsewhere := _differing(_origins(mine), _origins(its))):
        return f"sys.path finds another {join(elsewhere, 'and')}"
    if mine.environment == its.environment:
        return ""
    changed = [
        name
        for name in sorted({*mine.environment, *its.environment} - _LATE)
        if mine.environment.get(name) != its.environment.get(name)
        and (early is None or name in early or name.startswith(_EARLY_PREFIXES))
    ]
    return f"{join(changed, 'and')} changed" if changed else ""


def _origins(preparation: p.Preparation) -> dict[str, str | None]:
    """Return where packages are found by processes that get ready, without importing them."""
    found = {}
    for name in _FOUND:
        pin = preparation.pins.get(name)
        spec = importlib.machinery.PathFinder.find_spec(name, [pin] if pin is not None else list(preparation.boot_path))
        found[name] = None if spec is None else spec.origin
    return found


def _differing(one: dict[str, str | None], other: dict[str, str | None]) -> list[str]:
    return [name for name in one if one[name] != other[name]]
