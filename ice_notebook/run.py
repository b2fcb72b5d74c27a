"""`Run`: the handle on a run that users hold."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ice_notebook import protocol as p
from ice_notebook import report, store
from ice_notebook.agents import AgentProcess
from ice_notebook.errors import ResultError, RunFailed
from ice_notebook.follower import Follower, View
from ice_notebook.logs import RunLogs
from ice_notebook.results import Results, Values
from ice_notebook.state import Phase, RankPhase, RunState, replay
from ice_notebook.store import RunFolder


class Run:
    """A run: how it stands, what its ranks print and return, and the means to stop it.

    Its text and HTML form is the report. The objects are made by the launcher, or by `Run.open` from a folder.
    """

    _ice_refused = "a Run, a handle on processes of this notebook"

    def __init__(self, plan: p.Plan, folder: RunFolder) -> None:
        self.plan = plan
        self.logs = RunLogs(folder.output_log)
        self.panel: Any = None  # the widget that shows it, where there is a page; whoever displays the run displays that as well
        self._folder = folder
        self._state = RunState()
        self._changed = threading.Condition()
        self._over = threading.Event()  # apart from other changes: the cell that waits is not woken for each of them
        self._callbacks: list[Callable[[], None]] = []
        self.imports: dict[str, None] = {}  # installed modules that ranks have imported, in that order
        self._follower: Follower | None = None
        self._values = Values(folder)
        self._progress: dict[int, tuple[int, list[Any]]] = {}  # attempt and bars by rank
        lock = folder.lock()
        if lock is not None:
            weakref.finalize(self, lock.close)

    # ---- how it stands

    @property
    def id(self) -> str:
        """Return the run's id: the time of its launch and a random part."""
        return self.plan.run_id

    @property
    def folder(self) -> Path:
        """Return the run folder, with plan, journal and logs."""
        return self._folder.path

    @property
    def state(self) -> RunState:
        """Return how the run stands, as one immutable value."""
        return self._state

    @property
    def phase(self) -> Phase:
        """Return where the run stands; it compares equal to its word: `run.phase == "running"`."""
        return self._state.phase

    @property
    def restarts(self) -> int:
        """Return how often the worker group was started again after a failure."""
        return self._state.restarts

    @property
    def world_size(self) -> int:
        """Return the number of ranks."""
        attempt = self._state.attempt
        return attempt.world_size if attempt else self.plan.world_size

    @property
    def failures(self) -> Mapping[int, p.Failure]:
        """Return how the ranks of the last attempt failed, by rank, the root cause first."""
        return self._state.failures

    @property
    def exit_codes(self) -> Mapping[int, int]:
        """Return the exit codes of the last attempt's ranks that have ended, by rank; a negative one is the signal that ended it."""
        return {rank: state.exit_code for rank, state in sorted(self._state.ranks.items()) if state.exit_code is not None}

    @property
    def join_command(self) -> str:
        """Return the command with which other machines join, empty when none can. It holds the run's token: who has it can run code here."""
        return report.join_command(self.plan, self._state)

    def done(self) -> bool:
        """Return whether the run is over and none of its processes is left."""
        return self._over.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run is over, `timeout` seconds at most, and return whether it is. Never raises for how it ended."""
        return self._over.wait(timeout)

    # ---- what came of it

    @property
    def results(self) -> Mapping[int, Any]:
        """Return the values of the last attempt's ranks by global rank, each loaded on first access.

        A rank that has returned is in it, whatever became of the others; `in` and `get` never raise. Tensors come back on the CPU with
        the shape and dtype they had on their rank.

        Raises:
            RunFailed: the rank asked for failed, or the run did before it returned; `__cause__` is its exception.
            RunStopped: the rank asked for was stopped before it returned.
            ResultError: the value asked for is not there yet, could not be written, was not kept, or cannot be loaded here.
            KeyError: there is no such rank.
        """
        return Results(self, self._values)

    def result(self, rank: int = 0) -> Any:
        """Wait for the value of one rank and return it. Raises as `results` does."""
        with self._changed:
            self._changed.wait_for(lambda: self._over.is_set() or self._has_returned(rank) or not 0 <= rank < self.world_size)
        return self.results[rank]

    def output(self, rank: int, attempt: int | None = None) -> str:
        """Return what a rank printed, of the last attempt or of another one (counted from 0). Redirected streams are not in it.

        Raises:
            KeyError: there is no such rank, or no such attempt.
        """
        attempts = self._state.attempts
        number = attempt if attempt is not None else (attempts[-1].number if attempts else 0)
        if not 0 <= rank < self.world_size or (attempts and number not in {a.number for a in attempts}):
            raise KeyError(f"rank {rank} of attempt {number}")
        try:
            return self._folder.output_log(number, rank).read_bytes().decode(errors="replace")
        except FileNotFoundError:  # it has not started yet
            return ""

    def save(self) -> Path:
        """Bring the values of all ranks into the run folder, where they outlive this object, and return the folder.

        Raises:
            ResultError: there is no room for them.
        """
        for rank in self._state.ranks.values():
            self._values.save(self._state.attempts[-1].number, rank)
        return self.folder

    # ---- ending it

    def stop(self) -> None:
        """Have the run stopped in order: ranks are interrupted, and have `grace` seconds for their `finally`. Returns at once."""
        self.ask_to_stop("stop", is_urgent=False)

    def kill(self) -> None:
        """Have the run killed at once. Returns at once."""
        self.ask_to_stop("kill", is_urgent=True)

    def ask_to_stop(self, reason: str, *, is_urgent: bool) -> None:
        """Stop or kill the run for a reason, which the report tells; any thread may."""
        if self._follower is not None:
            self._follower.ask_to_stop(reason, is_urgent=is_urgent)

    # ---- what others need

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """Return a run that is over, from its folder.

        Raises:
            ResultError: the folder is none of a run.
        """
        found = RunFolder(Path(folder).resolve())
        try:
            plan, events = found.read_plan(), found.read_events()
        except (OSError, msgspec.DecodeError) as error:
            raise ResultError.no_run(folder) from error
        run = cls(plan, found)
        run._state = replay(events)
        run._over.set()
        for attempt in run._state.attempts:
            for rank in attempt.ranks:
                run.logs.take_file(attempt.number, rank)
        return run

    def subscribe(self, view: View) -> None:
        """Have a view told of changes from now on."""
        if self._follower is None or not self._follower.subscribe(view):
            self._follower = Follower(self, self._folder, None)
            self._follower.subscribe(view)
            self._follower.start()

    def start(self, agent: AgentProcess, plan: p.Plan) -> None:
        """Begin to follow an agent that does the plan: called once, by the launcher.

        From here on the values on shared memory live as long as this object or this process.
        """
        weakref.finalize(self, _drop_values, self.id, os.getpid())
        self.plan = plan
        self._follower = Follower(self, self._folder, agent)
        self._follower.start()

    def take_event(self, event: Any) -> None:
        """Change by an event: called by the run's thread."""
        with self._changed:
            self._state = self._state.apply(event)
            self._changed.notify_all()

    def take_progress(self, attempt: int, rank: int, bars: list[Any]) -> None:
        """Take note of how far a rank's loops are: called by the run's thread."""
        self._progress[rank] = attempt, bars

    @property
    def progress(self) -> Mapping[int, list[Any]]:
        """Return how far the loops of each rank are that `launcher.progress` counts: [what, done, of how many or None], outermost first."""
        attempt = self._state.attempt
        number = attempt.number if attempt is not None else -1
        return {rank: bars for rank, (of, bars) in sorted(self._progress.items()) if of == number and bars}

    @property
    def is_up(self) -> bool:
        """Return whether its ranks are at work, or it is over."""
        return self.phase is Phase.RUNNING or self.phase.is_final

    def take_imports(self, modules: list[str]) -> None:
        """Take note of what a rank has imported: called by the run's thread."""
        self.imports.update(dict.fromkeys(modules))

    def when_done(self, callback: Callable[[], None]) -> None:
        """Have something called, by the run's thread, as soon as the run is over; at once when it is."""
        with self._changed:
            if not self._over.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def end(self) -> None:
        """Take note that the run is over and nothing of it is left: called by the run's thread."""
        with self._changed:
            self._over.set()
            self._changed.notify_all()
        for callback in self._callbacks:
            callback()

    def exception(self) -> RunFailed | None:
        """Return the error that says how the run failed, None when it did not."""
        if self._state.phase is not Phase.FAILED:
            return None
        headline, lines = report.failure_lines(self.plan, self._state)
        error = RunFailed.of(self, headline, lines)
        error.__cause__ = self._cause()
        return error

    def __repr__(self) -> str:
        return report.format_text(self.plan, self._state)

    def _repr_html_(self) -> str:
        ranks = self._state.ranks
        tails = {rank: self.logs.tail(rank, report.lines_wanted(ranks[rank])) for rank in ranks}
        return report.format_html(self.plan, self._state, tails)

    # ---- steps

    def _has_returned(self, rank: int) -> bool:
        state = self._state.ranks.get(rank)
        return state is not None and state.phase is RankPhase.RETURNED

    def _cause(self) -> BaseException | None:
        """Return the exception of the root cause's rank, where it could travel."""
        attempt = self._state.attempt
        if attempt is None or attempt.root is None:
            return None
        from ice_notebook import pickles  # noqa: PLC0415 - a launch of a script must not wait for it

        try:
            error = pickles.load(self._folder.exception_file(attempt.number, attempt.root))
        except Exception:  # it could not be sent, or its class cannot be loaded here: the failure says what it was
            return None
        return error if isinstance(error, BaseException) else None


def _drop_values(run_id: str, pid: int) -> None:
    if os.getpid() == pid:  # a forked child that ends has nothing to drop
        store.remove_shared_dir(run_id)
