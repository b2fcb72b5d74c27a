"""What ranks say and how they end, and what follows for the run. Runs in the agent's io thread."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ice_notebook.agent.outbox import Outbox
from ice_notebook.agent.ranks import RankProcess, Stage
from ice_notebook.agent.recorder import Recorder
from ice_notebook.agent.state import AgentState
from ice_notebook.host import processes
from ice_notebook.host.writing import say
from ice_notebook.runs import crashes
from ice_notebook.wire import control as c
from ice_notebook.wire import protocol as p
from ice_notebook.wire.messages import Handlers


class Reports:
    """See the module."""

    def __init__(self, state: AgentState, recorder: Recorder, outbox: Outbox, wake: Callable[[], None]) -> None:
        """`wake` has the io thread see which ranks may get ready now."""
        self._state = state
        self._recorder = recorder
        self._outbox = outbox
        self._wake = wake
        self._out_of_memory_kills = 0
        self.handlers = Handlers(
            {
                c.Tied: self._on_tied,
                c.Ready: self._on_ready,
                c.Accepted: self._on_accepted,
                c.Progress: self._on_progress,
                c.Imported: lambda _, imported: self._outbox.post(imported),
                c.Loaded: self._on_loaded,
                c.Returned: self._on_returned,
                c.Lost: self._on_lost,
                c.Failed: lambda rank, failed: self.fail(rank, failed.failure),
                c.Unwound: self._on_unwound,
                c.HasHandler: self._on_handler,
                c.ForKernel: self._on_message_for_kernel,
                c.NotUnderstood: self._on_not_understood,
            }
        )

    def begin(self) -> None:
        """Take note of how often the system has run out of memory before the run."""
        self._out_of_memory_kills = processes.out_of_memory_kills()

    # ---- what they say

    def _on_ready(self, rank: RankProcess, message: c.Ready) -> None:
        rank.stage = Stage.READY
        rank.is_preloading = False
        told = message.readiness
        rank.readiness = told if rank.readiness is None else p.Readiness.of([rank.readiness, told])
        self._wake()  # the next may start
        if self._state.is_standing_by and self._state.are_ready:
            self._outbox.post(c.Ready(readiness=self._state.readiness()))

    def _on_tied(self, rank: RankProcess, _: c.Tied) -> None:
        rank.is_tied = True
        self._wake()  # it may have to rest

    def _on_accepted(self, rank: RankProcess, _: c.Accepted) -> None:
        rank.stage = Stage.ACCEPTED
        for stream in rank.streams:
            stream.release()
        self._recorder.record(p.RankRunning(at=time.time(), attempt=rank.attempt, rank=rank.rank))

    def _on_progress(self, rank: RankProcess, message: c.Progress) -> None:
        self._outbox.post_progress(p.replace(message, attempt=rank.attempt, rank=rank.rank))

    def _on_loaded(self, rank: RankProcess, _: c.Loaded) -> None:
        """Unlink the payload when every rank of the last possible attempt has it. Ranks are placed one by one: the first may be quick."""
        rank.has_loaded = True
        state = self._state
        if state.is_last_attempt and sum(each.has_loaded for each in state.ranks) == state.plan.world_size:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(state.plan.payload)

    def _on_returned(self, rank: RankProcess, message: c.Returned) -> None:
        self._take_value(rank, p.RankReturned(at=time.time(), attempt=rank.attempt, rank=rank.rank, value=message.value))

    def _on_lost(self, rank: RankProcess, message: c.Lost) -> None:
        self._take_value(rank, p.ValueLost(at=time.time(), attempt=rank.attempt, rank=rank.rank, reason=message.reason))

    def _on_unwound(self, rank: RankProcess, _: c.Unwound) -> None:
        rank.is_stopped = rank.was_asked  # only we know that

    def _on_handler(self, rank: RankProcess, _: c.HasHandler) -> None:
        rank.has_acknowledged = True

    def _on_message_for_kernel(self, rank: RankProcess, message: c.ForKernel) -> None:
        self._outbox.post(c.OfRank(attempt=rank.attempt, rank=rank.rank, body=message.body))

    def _on_not_understood(self, rank: RankProcess, message: c.NotUnderstood) -> None:
        say(f"rank {rank.rank} does not understand what it was told: {message.what}")

    def _take_value(self, rank: RankProcess, event: p.RankReturned | p.ValueLost) -> None:
        """Record that a function has returned; a script gives values before its end, and only a good end makes the last one count."""
        if self._state.plan.script is not None:
            rank.given = event
        else:
            rank.has_returned = True
            self._recorder.record(event)

    def fail(self, rank: RankProcess, failure: p.Failure) -> None:
        """Record that a rank has failed."""
        rank.failure = failure
        self._recorder.record(p.RankFailed(at=time.time(), attempt=rank.attempt, rank=rank.rank, failure=failure))

    # ---- how they end

    def take_exit(self, rank: RankProcess, code: int) -> None:
        """Say what the end of a rank that was at work means."""
        self._settle_given(rank, code)
        if not self._state.is_ending:
            self._judge_exit(rank, code)
        # Once the others are being ended it is our own signal that the code tells of.
        is_news = rank.has_returned and code != 0 and not self._state.is_ending
        note = f"left with exit code {code} after its value was written" if is_news else ""
        self._recorder.record(p.RankExited(at=time.time(), attempt=rank.attempt, rank=rank.rank, exit_code=code, note=note))

    def _settle_given(self, rank: RankProcess, code: int) -> None:
        """Record what a script gave if it has ended well, else free it."""
        given = rank.given
        if code == 0 and rank.failure is None and given is not None:
            rank.has_returned = True
            self._recorder.record(p.replace(given, at=time.time()))
        elif isinstance(given, p.RankReturned):
            Path(given.value.path).unlink(missing_ok=True)

    def _judge_exit(self, rank: RankProcess, code: int) -> None:
        """Decide what an exit means that we did not cause. A function's rank has reported how it ended; a script's exit code tells."""
        if self._state.plan.script is None:
            if not rank.has_returned and rank.failure is None:
                self.fail(rank, self.failure_from_exit(rank, code))
        elif code != 0 and rank.failure is None:
            self.fail(rank, self.failure_from_exit(rank, code))
        elif code == 0 and not rank.has_returned:
            self._recorder.record(p.RankSucceeded(at=time.time(), attempt=rank.attempt, rank=rank.rank))

    def failure_from_exit(self, rank: RankProcess, code: int) -> p.Failure:
        """Say how a rank ended that did not say it itself."""
        folder = self._state.folder
        out_of_memory = code == -signal.SIGKILL and processes.out_of_memory_kills() > self._out_of_memory_kills
        return crashes.failure_from_exit(
            code,
            out_of_memory=out_of_memory,
            stacks=folder.stacks_file(rank.attempt, rank.rank),
            sources=folder.sources_file,
            error_file=folder.error_file(rank.attempt, rank.rank),
            at=time.time(),
        )
