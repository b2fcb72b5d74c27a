"""`Run`: the handle on a run that users hold. It follows the agent from one thread, which also drives the views."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ice_notebook import pickles, processes, report, store
from ice_notebook import protocol as p
from ice_notebook.agents import AgentProcess
from ice_notebook.errors import ResultError, RunFailed, RunStopped
from ice_notebook.frames import Frame
from ice_notebook.logs import RunLogs
from ice_notebook.state import Phase, RankPhase, RankState, RunState, replay
from ice_notebook.store import RunFolder

VIEW_INTERVAL_S = 0.1  # views are told of changes at most this often
ACKNOWLEDGE_WAIT_S = 1.0  # an agent that does not answer a stop within this time is killed
LADDER_WAIT_S = 3.0  # and one that has answered, this much longer than the ranks' grace after it


class View(Protocol):
    """Something that shows a run. Called from the run's thread only."""

    def update(self) -> float | None:
        """Show what has changed; return in how many seconds to be called again even if nothing changes, None for never."""


class Run:
    """A run: how it stands, what its ranks print and return, and the means to stop it.

    Its text and HTML form is the report. The objects are made by the launcher, or by `Run.open` from a folder.
    """

    _ice_refused = "a Run, a handle on processes of this notebook"

    def __init__(self, plan: p.Plan, folder: RunFolder) -> None:
        self.plan = plan
        self.logs = RunLogs()
        self._folder = folder
        self._state = RunState()
        self._changed = threading.Condition()
        self._is_done = False
        self._views: list[tuple[View, float]] = []  # with the time at which each wants to be called again
        self._agent: AgentProcess | None = None
        self._stop_reason = ""
        self._answer_until: float | None = None
        self._loaded: dict[tuple[int, int], Any] = {}
        self._loading = threading.Lock()
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        weakref.finalize(self, _release, folder.lock(), self._wake_reader, self._wake_writer)

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

    def done(self) -> bool:
        """Return whether the run is over and none of its processes is left."""
        return self._is_done

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run is over, `timeout` seconds at most, and return whether it is. Never raises for how it ended."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_done, timeout)

    # ---- what came of it

    @property
    def results(self) -> Mapping[int, Any]:
        """Return the values of the last attempt's ranks by global rank, each loaded on first access.

        A rank that has returned is in it, whatever became of the others; `in` and `get` never raise. Tensors come back on the CPU with
        the shape and dtype they had on their rank.

        Raises:
            RunFailed: the rank asked for failed, or the run did before it returned; `__cause__` is its exception.
            RunStopped: the rank asked for was stopped before it returned.
            ResultError: the value asked for is not there yet, could not be written, or was not kept.
            KeyError: there is no such rank.
        """
        return _Results(self)

    def result(self, rank: int = 0) -> Any:
        """Wait for the value of one rank and return it. Raises as `results` does."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_done or self._has_returned(rank))
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
            target = self._folder.result_file(self._state.attempts[-1].number, rank.rank)
            if rank.value is None or target.exists() or not os.path.exists(rank.value.path):
                continue
            partial = target.with_name("result.partial")
            try:
                shutil.copyfile(rank.value.path, partial)
                partial.rename(target)
            except OSError as error:
                partial.unlink(missing_ok=True)
                raise ResultError.no_room(rank.rank, rank.value.size_bytes) from error
        return self.folder

    # ---- ending it

    def stop(self) -> None:
        """Have the run stopped in order: ranks are interrupted, and have `grace` seconds for their `finally`. Returns at once."""
        self._request_stop("stop", is_urgent=False)

    def kill(self) -> None:
        """Have the run killed at once. Returns at once."""
        self._request_stop("kill", is_urgent=True)

    def _request_stop(self, reason: str, *, is_urgent: bool) -> None:
        """Tell the agent; any thread may. If it does not answer in time, the run's thread kills it."""
        with self._changed:
            if self._is_done or self._agent is None or self._state.phase.is_final:
                return
            self._stop_reason = self._stop_reason or reason
            self._answer_until = time.monotonic() + ACKNOWLEDGE_WAIT_S
        with contextlib.suppress(OSError):  # the agent is dead, which the thread is about to see
            self._agent.channel.send("stop", reason=reason, urgent=is_urgent)
        self._wake()

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
        run._is_done = True
        for rank in run._state.ranks:
            run.logs.feed(run._state.attempts[-1].number, rank, run.output(rank).encode())
        return run

    def subscribe(self, view: View) -> None:
        """Have a view told of changes from now on."""
        with self._changed:
            self._views.append((view, 0.0))
        self._wake()

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

    def _load(self, rank: int) -> Any:
        """Return the value of a rank that has one."""
        number = self._state.attempts[-1].number
        value = self._state.ranks[rank].value
        assert value is not None
        with self._loading:
            if (number, rank) not in self._loaded:
                kept = self._folder.result_file(number, rank)
                path = value.path if os.path.exists(value.path) else str(kept)
                try:
                    self._loaded[number, rank] = pickles.load(path)
                except FileNotFoundError:
                    raise ResultError.not_kept(rank) from None
            return self._loaded[number, rank]

    def _cause(self) -> BaseException | None:
        """Return the exception of the root cause's rank, where it could travel."""
        attempt = self._state.attempt
        if attempt is None or attempt.root is None:
            return None
        try:
            error = pickles.load(self._folder.exception_file(attempt.number, attempt.root))
        except Exception:  # it could not be sent, or its class cannot be loaded here: the failure says what it was
            return None
        return error if isinstance(error, BaseException) else None

    # ---- the thread

    def _start(self, start_agent: Callable[[], AgentProcess]) -> None:
        """Begin: called once, by the launcher. From here on the values on shared memory live as long as this object or this process."""
        self._agent = start_agent()
        weakref.finalize(self, _drop_values, self.id, os.getpid())
        threading.Thread(target=self._run_thread, name=f"ice-run-{self.id}", daemon=True).start()

    def _run_thread(self) -> None:
        try:
            self._follow()
        except BaseException:  # a fault of ours: the run must not go on unseen, nor anybody wait for it for ever
            self._log_fault()
            if self._agent is not None:
                self._agent.kill()
                self._close_agent()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # enough wake-ups are under way
            os.write(self._wake_writer, b"!")

    def _follow(self) -> None:
        """Follow the agent to its end, then serve the views until they are content."""
        assert self._agent is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._agent.channel, selectors.EVENT_READ, self._on_agent)
            selector.register(self._wake_reader, selectors.EVENT_READ, self._on_wake)
            self._told_at = 0.0
            self._has_news = True
            while self._agent is not None or self._next_call() is not None:
                for key, _ in selector.select(self._select_timeout()):
                    if key.data() is _ENDED:
                        selector.unregister(key.fileobj)
                        self._close_agent()
                self._check_answer()
                self._tell_views()

    def _on_wake(self) -> None:
        os.read(self._wake_reader, 4096)
        self._has_news = True

    def _on_agent(self) -> object:
        assert self._agent is not None
        try:
            frames = self._agent.channel.receive_ready()
        except (EOFError, OSError):
            return _ENDED
        for frame in frames:
            self._take_frame(frame)
        return None

    def _take_frame(self, frame: Frame) -> None:
        if frame.kind == "output":
            self.logs.feed(frame.fields["attempt"], frame.fields["rank"], frame.body, frame.fields["missed"])
        elif frame.kind == "event":
            self._apply(p.decode_event(frame.body))
        elif frame.kind == "stopping":
            # Heard. The ladder has its own times; an agent that overstays them is killed as one that does not answer.
            self._answer_until = time.monotonic() + self.plan.grace + LADDER_WAIT_S
        self._has_news = True

    def _apply(self, event: Any) -> None:
        with self._changed:
            self._state = self._state.apply(event)
            self._changed.notify_all()

    def _check_answer(self) -> None:
        if self._agent is not None and self._answer_until is not None and time.monotonic() > self._answer_until:
            self._answer_until = None
            self._agent.kill()

    def _close_agent(self) -> None:
        """The agent is gone. If it has not said how the run ended, see to it: nothing of the run is left when this returns."""
        assert self._agent is not None
        code = self._agent.close()
        if not self._state.phase.is_final:
            swept = processes.sweep(self.plan.marker)
            outcome = p.Outcome.STOPPED if self._stop_reason else p.Outcome.FAILED
            reason = self._stop_reason or report_of_agent(code)
            ended = p.RunEnded(at=time.time(), outcome=outcome, reason=reason, swept=swept)
            with contextlib.suppress(OSError), self._folder.open_journal() as journal:
                journal.append(ended)
            self._apply(ended)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.plan.payload)
        with self._changed:
            self._agent = None
            self._is_done = True
            self._has_news = True
            self._changed.notify_all()

    # ---- views

    def _next_call(self) -> float | None:
        """Return when the next view wants to be called, None when none does."""
        with self._changed:
            wanted = [at for _, at in self._views if at < _NEVER]
        return min(wanted, default=None)

    def _select_timeout(self) -> float | None:
        moments = [moment for moment in (self._next_call(), self._answer_until) if moment is not None]
        if self._has_news:
            moments.append(self._told_at + VIEW_INTERVAL_S)
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _tell_views(self) -> None:
        now = time.monotonic()
        is_news = self._has_news and now - self._told_at >= VIEW_INTERVAL_S
        with self._changed:
            views = list(self._views)
        if is_news:
            self._has_news, self._told_at = False, now
        for view, wanted_at in views:
            if not is_news and now < wanted_at:
                continue
            again_s = self._update(view)
            with self._changed:
                self._views = [
                    (v, now + again_s if again_s is not None else _NEVER) if v is view else (v, at) for v, at in self._views
                ]
        with self._changed:
            self._changed.notify_all()

    def _update(self, view: View) -> float | None:
        try:
            return view.update()
        except Exception:  # a view's fault must not end the run's only thread; the view shows its own errors
            self._log_fault()
            return None

    def _log_fault(self) -> None:
        with contextlib.suppress(OSError), open(self._folder.agent_log, "a", encoding="utf-8") as log:
            traceback.print_exc(file=log)


_ENDED = object()
_NEVER = float("inf")


class _Results(Mapping[int, Any]):
    """See `Run.results`."""

    _ice_refused = "the results of a Run, which are loaded from its files when they are asked for"

    def __init__(self, run: Run) -> None:
        self._run = run

    def __getitem__(self, rank: int) -> Any:
        run = self._run
        if not isinstance(rank, int) or not 0 <= rank < run.world_size:
            raise KeyError(rank)
        state = run.state.ranks.get(rank)
        if state is not None and state.value is not None:
            return run._load(rank)
        raise _why_there_is_no_value(run, rank, state)

    def __contains__(self, rank: object) -> bool:
        state = self._run.state.ranks.get(rank)  # type: ignore[call-overload]
        return state is not None and state.value is not None

    def get(self, rank: int, default: Any = None) -> Any:
        """Return a rank's value, or the default when it has none."""
        return self[rank] if rank in self else default  # noqa: SIM401 - this is what `get` is

    def __iter__(self) -> Iterator[int]:
        return iter([rank for rank in sorted(self._run.state.ranks) if rank in self])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        ranks = self._run.state.ranks
        return "{" + ", ".join(f"{rank}: {value.text}" for rank in self if (value := ranks[rank].value) is not None) + "}"


def _why_there_is_no_value(run: Run, rank: int, state: RankState | None) -> Exception:
    if state is not None and state.lost:
        return ResultError(state.lost)
    if state is not None and state.failure is not None:
        return run.exception() or RunFailed.of(run, report.failure_sentence(rank, state.failure), ())
    if run.phase is Phase.FAILED:
        return run.exception() or ResultError.not_yet(rank)
    if run.phase is Phase.STOPPED:
        return RunStopped.before_return(rank)
    return ResultError.not_yet(rank)


def report_of_agent(exit_code: int) -> str:
    """Say that an agent ended without a word."""
    return f"the agent ended with signal {-exit_code}" if exit_code < 0 else f"the agent ended with exit code {exit_code}"


def _release(lock: Any, *descriptors: int) -> None:
    if lock is not None:
        lock.close()
    for fd in descriptors:
        os.close(fd)


def _drop_values(run_id: str, pid: int) -> None:
    if os.getpid() == pid:  # a forked child that ends has nothing to drop
        store.remove_shared_dir(run_id)
