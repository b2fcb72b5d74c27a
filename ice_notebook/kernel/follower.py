"""The one thread of a run in the kernel: it follows the agent, sees to its end, and drives the views."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from ice_notebook.host import processes
from ice_notebook.kernel.agents import AgentProcess, how_it_ended
from ice_notebook.runs.log_files import read_end
from ice_notebook.runs.logs import RunLogs
from ice_notebook.runs.state import RunState
from ice_notebook.runs.store import RunFolder
from ice_notebook.wire import control as c
from ice_notebook.wire import node_messages as m
from ice_notebook.wire import protocol as p
from ice_notebook.wire.messages import Handlers, Message, pack_message

VIEW_INTERVAL_S = 0.1  # views are told of changes this often in the long run
# After a pause so many times at once: a launch is half a dozen events in 50 ms, and its first line must not wait behind them.
VIEW_BURST = 8
# Views hear of a beginning with what else comes within this time, the first line say: each telling costs processors that ranks are about to use.
GATHER_S = 0.02
_OF_NODES = (m.NodeReady, m.StoreMade, m.RoundFailed, m.Done)
_BEGINNINGS = (p.RunBegun, p.AttemptBegun, p.RankRunning)
ACKNOWLEDGE_WAIT_S = 1.0  # an agent that does not answer a stop within this time is killed
EARLY_WAIT_S = 0.2  # the same before the first attempt, when nothing of the user's runs yet: importing torch deafens an agent
LADDER_WAIT_S = 3.0  # and one that has answered, this much longer than the ranks' grace after it
# After so many reads of little between two looks of the views, the agent is left alone for a moment after each: ranks that all print would
# otherwise cost a wake-up for every few lines.
MANY_READS = 10
LITTLE_BYTES = 32 << 10
REST_S = 0.01
_NEVER = float("inf")


class Pace:
    """How often something may happen: once an interval in the long run, and after a pause a burst of times at once."""

    def __init__(self, interval_s: float, burst: int) -> None:
        self._interval_s = interval_s
        self._burst = burst
        self._taken_until = -float("inf")  # where a steady beat would stand after all that has happened

    @property
    def free_at(self) -> float:
        """Return from when on it may happen again."""
        return self._taken_until - (self._burst - 1) * self._interval_s

    def take(self, now: float) -> None:
        """Count one time."""
        self._taken_until = max(now, self._taken_until) + self._interval_s


class View(Protocol):
    """Something that shows a run. Called from the run's thread only."""

    def update(self) -> float | None:
        """Show what has changed; return in how many seconds to be called again even if nothing changes, None for never."""


class Followed(Protocol):
    """A run as its thread sees it."""

    plan: p.Plan
    logs: RunLogs

    @property
    def state(self) -> RunState:
        """Return how the run stands."""

    def take_event(self, event: Any) -> None:
        """Change by an event."""

    def take_journal(self, events: Sequence[Any]) -> None:
        """Stand as the journal says, if it knows more than was heard."""

    def take_logs(self) -> None:
        """Take what the log files hold beyond what was heard."""

    def take_progress(self, attempt: int, rank: int, bars: list[Any]) -> None:
        """Take note of how far a rank's loops are."""

    def take_imports(self, modules: list[str]) -> None:
        """Take note of what a rank has imported."""

    def take_message(self, message: c.OfRank) -> None:
        """Hear what a rank has to say."""

    def end(self) -> None:
        """Take note that the run is over and nothing of it is left."""


class Follower(threading.Thread):
    """Follows an agent to its end and serves views until they are content; without an agent it serves views alone."""

    def __init__(self, run: Followed, folder: RunFolder, agent: AgentProcess | None) -> None:
        super().__init__(name=f"ice-run-{run.plan.run_id}", daemon=True)
        self._run = run
        self._folder = folder
        self._agent = agent
        self._lock = threading.Lock()  # guards what other threads bring: views, stops
        self._views: dict[View, float] = {}  # with the time at which each wants to be called again
        self._stop_reason: p.StopReason | None = None
        self._answer_until: float | None = None  # by when the agent must have answered, and then ended
        self._news_due = 0.0  # when views are to be told of what is new
        self._small_reads = 0  # of the agent, since the views were told
        self._pace = Pace(VIEW_INTERVAL_S, VIEW_BURST)
        self._is_over = False
        self._is_woken = False
        self._woken = threading.Condition(self._lock)
        # As long as there is an agent: what goes on afterwards, for a page that has not confirmed the end, holds no descriptor.
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if agent is not None else (-1, -1)
        self._from_agent = Handlers(
            {
                c.Output: self._on_output,
                c.Progress: lambda message: self._run.take_progress(message.attempt, message.rank, message.bars),
                c.Imported: lambda message: self._run.take_imports(message.modules),
                c.Happened: self._on_event,
                c.Stopping: self._on_stopping,
                c.OfRank: self._on_message_of_rank,
                # Said before the run has begun, and to the coordinator of a run of several nodes, which is in the agent of this one.
                **dict.fromkeys([c.Ready, c.Taken, c.Spoiled, *_OF_NODES], lambda _: None),
            }
        )

    @property
    def views(self) -> list[View]:
        """Return the views that it tells."""
        return list(self._views)

    # ---- from other threads

    def subscribe(self, view: View) -> bool:
        """Have a view told of changes from now on, and soon of how all stands; False when this thread is over."""
        with self._lock:
            if self._is_over:
                return False
            self._views[view] = time.monotonic() + GATHER_S
            self._wake()
        return True

    def nudge(self) -> None:
        """Have the views told that there is something new."""
        with self._lock:
            self._news_due = 0.0
            self._wake()

    def ask_to_stop(self, reason: p.StopReason, *, is_urgent: bool, by: int) -> None:
        """Tell the agent to stop, or, if urgent, to kill. If it does not answer in time it is killed itself."""
        with self._lock:
            if self._agent is None or self._run.state.phase.is_final:
                return
            agent = self._agent
            self._stop_reason = self._stop_reason or reason
            self._answer_until = time.monotonic() + (ACKNOWLEDGE_WAIT_S if self._run.state.attempts else EARLY_WAIT_S)
            self._wake()
        agent.tell(c.Stop(reason=reason, is_urgent=is_urgent, signal=by))

    def relay(self, number: int) -> None:
        """Have the agent pass a signal on to ranks that have a handler of their own for it."""
        self._tell(c.PassSignal(number=number))

    def tell_size(self, columns: int, rows: int) -> None:
        """Have the ranks' terminals get another size."""
        self._tell(c.Resize(columns=columns, rows=rows))

    def tell_rank(self, rank: int, message: Message) -> None:
        """Say something to one rank, wherever it is. Nobody on the way need know it."""
        self._tell(c.ForRank(rank=rank, body=pack_message(message)))

    def _tell(self, message: Message) -> None:
        """Say something to the agent, if it is still there."""
        with self._lock:
            agent = None if self._wake_writer < 0 else self._agent
        if agent is not None:
            agent.tell(message)

    def _wake(self) -> None:
        """Have the thread look again. Called under the lock."""
        self._is_woken = True
        self._woken.notify_all()
        if self._wake_writer >= 0:
            with contextlib.suppress(BlockingIOError):  # enough wake-ups are under way
                os.write(self._wake_writer, b"!")

    # ---- the thread

    def run(self) -> None:
        """See the class."""
        try:
            if self._agent is not None:
                self._follow()
            self._close_pipe()
            self._serve_views()
        except BaseException:  # a fault of ours: the run must not go on unseen, nor anybody wait for it for ever
            self._log_fault()
            if self._agent is not None:
                self._agent.kill()
                self._close_agent()
        finally:
            self._close_pipe()
            with self._lock:
                self._is_over = True

    def _close_pipe(self) -> None:
        with self._lock:
            for fd in {self._wake_reader, self._wake_writer} - {-1}:
                os.close(fd)
            self._wake_reader = self._wake_writer = -1

    def _follow(self) -> None:
        """Follow the agent to its end."""
        assert self._agent is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_reader, selectors.EVENT_READ, self._on_wake)
            selector.register(self._agent.channel, selectors.EVENT_READ, self._on_agent)
            while self._agent is not None:
                with self._lock:
                    timeout_s = self._select_timeout()
                for key, _ in selector.select(timeout_s):
                    if not key.data():
                        selector.unregister(key.fileobj)
                        self._revive_agent(selector)
                if self._agent is not None and self._agent.deadline is not None and time.monotonic() >= self._agent.deadline:
                    selector.unregister(self._agent.channel)
                    self._revive_agent(selector)
                self._check_answer()
                self._tell_views()
                if self._small_reads > MANY_READS:
                    select.select([self._wake_reader], [], [], REST_S)

    def _serve_views(self) -> None:
        """Tell views until none wants to be called again."""
        while True:
            with self._lock:
                timeout_s = self._select_timeout()
                if timeout_s is None and not self._is_woken:
                    self._is_over = True
                    return
                self._woken.wait_for(lambda: self._is_woken, timeout_s)
                self._is_woken = False
            self._tell_views()

    def _revive_agent(self, selector: selectors.BaseSelector) -> None:
        """Go on with an agent that somebody else was to bring, started afresh if he has not; the end of any other is that of the run."""
        assert self._agent is not None
        is_late = self._agent.deadline is not None and time.monotonic() >= self._agent.deadline
        if self._agent.revive() or is_late:
            selector.register(self._agent.channel, selectors.EVENT_READ, self._on_agent)
        else:
            self._close_agent()

    def _on_wake(self) -> bool:
        os.read(self._wake_reader, 4096)
        return True

    def _on_agent(self) -> bool:
        """Take what the agent says; False when it has ended."""
        assert self._agent is not None
        try:
            messages = self._agent.channel.receive_ready()
        except (EOFError, OSError):
            return False
        for message in messages:
            is_beginning = bool(self._from_agent.take(message))
            self._news_due = min(self._news_due, time.monotonic() + GATHER_S if is_beginning else 0.0)
        self._small_reads += sum(len(message.body) for message in messages if isinstance(message, c.Output)) < LITTLE_BYTES
        return True

    def _on_output(self, output: c.Output) -> None:
        # The agent's last word on output that it left out comes alone: what follows the gap, a rank's last lines, is in the file.
        body = output.body or read_end(self._folder.output_log(output.attempt, output.rank), output.missed)
        missed = output.missed - (len(body) - len(output.body))
        self._run.logs.feed(output.attempt, output.rank, body, missed, is_kept=output.is_kept, is_stderr=output.is_stderr)

    def _on_event(self, message: c.Happened) -> bool:
        """Take an event, and return whether it is a beginning."""
        self._run.take_event(message.event)
        return isinstance(message.event, _BEGINNINGS)

    def _on_message_of_rank(self, message: c.OfRank) -> None:
        try:
            self._run.take_message(message)
        except Exception:  # one feature's: the run goes on
            self._log_fault()

    def _on_stopping(self, _: c.Stopping) -> None:
        # Heard. The ladder has its own times; an agent that overstays them is killed as one that does not answer.
        with self._lock:
            self._answer_until = time.monotonic() + self._run.plan.grace + LADDER_WAIT_S

    def _check_answer(self) -> None:
        with self._lock:
            is_late = self._answer_until is not None and time.monotonic() > self._answer_until
            if is_late:
                self._answer_until = None
        if is_late and self._agent is not None:
            self._agent.kill()

    def _close_agent(self) -> None:
        """The agent is gone. If it has not said how the run ended, see to it: nothing of the run is left when this returns."""
        assert self._agent is not None
        agent = self._agent
        has_said_how = self._run.state.phase.is_final
        if has_said_how:
            agent.kill()  # an import of torch that still goes on could hold it up for a second
            agent.wait_dead()
        else:
            exit_code = agent.close(self._folder.agent_log)
            self._take_rest()
            if not self._run.state.phase.is_final:
                self._end_in_its_place(exit_code)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._run.plan.payload)
        with self._lock:
            self._agent = None
            self._answer_until = None
        self._news_due = 0.0
        self._run.end()
        if has_said_how:
            agent.close(self._folder.agent_log)

    def _take_rest(self) -> None:
        """Take from the folder what the agent could not say: it does not wait for a kernel that reads nothing, stopped by Ctrl-Z say."""
        with contextlib.suppress(OSError, msgspec.DecodeError):  # a folder that is gone, or damaged: what was heard counts
            self._run.take_journal(self._folder.read_events())
        self._run.take_logs()

    def _end_in_its_place(self, exit_code: int | None) -> None:
        swept = processes.sweep(self._run.plan.marker, looks=3)
        outcome = p.Outcome.STOPPED if self._stop_reason else p.Outcome.FAILED
        reason = self._stop_reason.value if self._stop_reason else how_it_ended(exit_code, self._folder.agent_log)
        ended = p.RunEnded(at=time.time(), outcome=outcome, reason=reason, swept=swept)
        with contextlib.suppress(OSError), self._folder.open_journal() as journal:
            journal.append(ended)
        self._run.take_event(ended)

    # ---- views

    def _select_timeout(self) -> float | None:
        """Return how long nothing is to be done, None for ever. Called under the lock."""
        deadline = None if self._agent is None else self._agent.deadline
        next_call = min((at for at in self._views.values() if at < _NEVER), default=None)
        moments = [moment for moment in (next_call, self._answer_until, deadline) if moment is not None]
        if self._news_due < _NEVER:
            moments.append(max(self._news_due, self._pace.free_at))
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _tell_views(self) -> None:
        now = time.monotonic()
        is_news = now >= max(self._news_due, self._pace.free_at)
        if is_news:
            self._news_due = _NEVER
            self._small_reads = 0
            self._pace.take(now)
        with self._lock:
            due = [view for view, at in self._views.items() if is_news or now >= at]
        for view in due:
            again_s = self._update(view)
            with self._lock:
                self._views[view] = _NEVER if again_s is None else now + again_s

    def _update(self, view: View) -> float | None:
        try:
            return view.update()
        except Exception:  # a view's fault must not end the run's only thread; the view shows its own errors
            self._log_fault()
            return None

    def _log_fault(self) -> None:
        with contextlib.suppress(OSError), open(self._folder.agent_log, "a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
