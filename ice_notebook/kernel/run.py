"""`Run`: the handle on a run that users hold."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ice_notebook.errors import ResultError, RunFailed
from ice_notebook.host.interrupts import Listeners
from ice_notebook.host.locks import Lock
from ice_notebook.kernel.agents import AgentProcess
from ice_notebook.kernel.follower import Follower, View
from ice_notebook.kernel.onlooker import Onlooker, goes_on
from ice_notebook.runs import report
from ice_notebook.runs.logs import RunLogs
from ice_notebook.runs.results import Results, Values
from ice_notebook.runs.state import Phase, RankPhase, RunState, replay
from ice_notebook.runs.store import RunFolder
from ice_notebook.values.shared_values import SharedValues
from ice_notebook.wire import protocol as p
from ice_notebook.wire.control import OfRank
from ice_notebook.wire.messages import Handlers, Message


class Run:
    """A run: how it stands, what its ranks print and return, and the means to stop it.

    Its text and HTML form is the report. The objects are made by the launcher, or by `Run.open` from a folder.
    """

    _ice_refused = "a Run, which controls processes of this notebook"

    def __init__(self, plan: p.Plan, folder: RunFolder, *, owner: Lock | None = None, shared: SharedValues | None = None) -> None:
        self.plan = plan
        self.logs = RunLogs(folder.output_log)
        self.unshown = ""  # why its end could not be shown where it was to be
        self.panel: Any = None  # the widget that shows it, where there is a page; whoever displays the run displays that as well
        self._folder = folder
        self._state = RunState()
        self._lock = threading.Lock()
        self._is_over = False
        self._changes = Listeners()
        self._ends = Listeners()  # apart from other changes: the cell that waits is not woken for each of them
        self._callbacks: list[Callable[[], None]] = []
        self.imports: dict[str, None] = {}  # installed modules that ranks have imported, in that order
        self._follower: Follower | None = None
        self._onlooker: Onlooker | None = None  # another process controls it
        self._from_ranks = Handlers({})
        self._values = Values(folder)
        self.is_let_go = False
        self._progress: dict[int, tuple[int, list[Any]]] = {}  # attempt and bars by rank
        self._lock_of_folder = folder.lock()
        self._owner = owner  # as long as it goes on, it is ours
        self._shared = shared  # its values there live as long as this object

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
        return self._is_over

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run is over, `timeout` seconds at most, and return whether it is. Never raises for how it ended."""
        return self._ends.wait_for(self.done, timeout)

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
        self._changes.wait_for(lambda: self._is_over or self._has_returned(rank) or not 0 <= rank < self.world_size)
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
            text = self._folder.output_log(number, rank).read_bytes().decode(errors="replace")
        except FileNotFoundError:  # it has not started yet
            text = ""
        state = next((each.ranks.get(rank) for each in attempts if each.number == number), None)
        if state is not None and state.lost_output_bytes:
            newline = "" if text.endswith("\n") or not text else "\n"
            text += f"{newline}… {report.loss_sentence(state)}\n"
        return text

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
        self.ask_to_stop(p.StopReason.STOP, is_urgent=False)

    def kill(self) -> None:
        """Have the run killed at once. Returns at once."""
        self.ask_to_stop(p.StopReason.KILL, is_urgent=True)

    def ask_to_stop(self, reason: p.StopReason, *, is_urgent: bool, by: int = signal.SIGINT) -> None:
        """Stop or kill the run for a reason, which the report tells; any thread may.

        `by` is the signal that stops it: ranks with a handler of their own for it get that one.

        Raises:
            ControlError: the run was opened from its folder, and its agent cannot be reached from here.
        """
        if self._onlooker is not None:
            self._onlooker.ask_to_stop(is_urgent=is_urgent)
        elif self._follower is not None:
            self._follower.ask_to_stop(reason, is_urgent=is_urgent, by=by)

    def relay(self, number: int) -> None:
        """Pass a signal on to those ranks that have a handler of their own for it: a scheduler's warning, say. Nothing is stopped."""
        if self._follower is not None:
            self._follower.relay(number)

    def tell_size(self, columns: int, rows: int) -> None:
        """Have the ranks' terminals get the size of the window that shows them; any thread may."""
        if self._follower is not None:
            self._follower.tell_size(columns, rows)

    # ---- what others need

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """Return a run from its folder: one that is over, or one that another process on this machine still does.

        Of the latter `done()` is False, `wait()` waits for its end, `stop()` stops it, and what it has printed and returned so far is there.
        Its values and its exception are pickles, loaded when they are asked for: that runs code of whoever wrote them. Files of other users are
        refused, copies of them are not: open folders whose writer you trust.

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
        for attempt in run._state.attempts:
            for rank in attempt.ranks:
                run.logs.take_file(attempt.number, rank)
        if goes_on(found, run._state):
            run._onlooker = Onlooker(run, found, run._state.agent)
            run._onlooker.start()
        else:
            run._is_over = True
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
        self.plan = plan
        self._follower = Follower(self, self._folder, agent)
        self._follower.start()

    def take_event(self, event: Any) -> None:
        """Change by an event: called by the run's thread."""
        self._state = self._state.apply(event)
        self._changes.tell()

    def take_journal(self, events: Sequence[Any]) -> None:
        """Stand as the journal says, if it knows more than the agent has said: called by the run's thread."""
        written = replay(events)
        if written.rev > self._state.rev or written.phase.is_final:
            self._state = written
        self._changes.tell()

    def take_logs(self) -> None:
        """Take what the log files hold beyond what was heard, and have the views told."""
        for attempt in self._state.attempts:
            for rank in attempt.ranks:
                self.logs.take_rest(attempt.number, rank)
        if self._follower is not None:
            self._follower.nudge()

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

    def take_message(self, message: OfRank) -> None:
        """Hear what a rank has to say, by the method that `on` was given for it: called by the run's thread."""
        self._from_ranks.take_packed(message.body, message.rank)

    def on(self, kind: type[Message], method: Callable[[int, Any], None]) -> None:
        """Have messages of a kind, which ranks have for whoever controls the run, taken by a method; it gets the rank and the message."""
        self._from_ranks.on(kind, method)

    def tell_rank(self, rank: int, message: Message) -> None:
        """Say something to a rank that has begun, on whichever node it is. Its `rank.control` knows what to do with it."""
        if self._follower is not None:
            self._follower.tell_rank(rank, message)

    def when_done(self, callback: Callable[[], None]) -> None:
        """Have something called, by the run's thread, as soon as the run is over; at once when it is."""
        with self._lock:
            if not self._is_over:
                self._callbacks.append(callback)
                return
        callback()

    @property
    def kept_bytes(self) -> int:
        """Return how much of shared memory its values take."""
        if self._shared is None or self.is_let_go:
            return 0
        return sum(rank.value.size_bytes for rank in self._state.ranks.values() if rank.value is not None)

    @property
    def followers(self) -> list[Any]:
        """Return what of ours refers to it: its thread, and its views."""
        return [] if self._follower is None else [self._follower, *self._follower.views]

    def let_go(self) -> None:
        """Give up the values on shared memory, and the hold on the folder: only the notebook's output history still refers to this run."""
        self.is_let_go = True
        self._values.let_go()
        if self._shared is not None:
            self._shared.discard()
        if self._lock_of_folder is not None:
            self._lock_of_folder.release()

    def end(self) -> None:
        """Take note that the run is over and nothing of it is left: called by the run's thread."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        if self._owner is not None:
            self._owner.release()
        self._changes.tell()
        self._ends.tell()
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
        from ice_notebook.values import pickles  # noqa: PLC0415 - a launch of a script must not wait for it

        try:
            error = pickles.load(self._folder.exception_file(attempt.number, attempt.root))
        except KeyboardInterrupt:
            raise
        except BaseException:  # it could not be sent, or its class cannot be loaded here: the failure says what it was
            return None
        return error if isinstance(error, BaseException) else None
