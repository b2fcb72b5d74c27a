"""How an agent stands: all that its threads share of the run, of its ranks and of what is asked of it. Every change has a name."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ice_notebook.agent.ranks import RankProcess, Stage
from ice_notebook.runs.store import RunFolder
from ice_notebook.wire import protocol as p


@dataclass(frozen=True)
class StopRequest:
    """Why the run is being stopped, and by which signal ranks hear of it first; without one they are terminated at once."""

    reason: p.StopReason
    by: signal.Signals | None = signal.SIGINT
    grace_s: float | None = None  # None: the plan's


class AgentState:
    """See the module. `condition` guards all here, and its waiters hear of every change. Nobody else sets an attribute."""

    plan: p.Plan  # from `take_run` on
    folder: RunFolder

    def __init__(self, preparation: p.Preparation) -> None:
        self.condition = threading.Condition()  # an RLock underneath: those who hold it may record
        self.n_to_stand_by = preparation.n_ranks
        self.has_run = False
        self.is_standing_by = False  # the agent itself is ready, and has no run yet
        self.was_ready = False  # all was up when the run came
        self.folder_error: OSError | None = None  # nothing of a run can be kept
        self.ranks: list[RankProcess] = []  # living, or dead and not yet reaped
        self.n_being_started = 0  # ranks that are wanted and not there yet
        self.is_waited_for = preparation.is_at_once  # somebody waits for ranks that get ready
        self.at_a_time = preparation.at_a_time  # so many that nobody waits for get ready, others rest; None: all do
        self.start_error: BaseException | None = None  # a rank could not be started
        self.is_last_attempt = False
        self.is_ending = False  # ranks are being ended by us: their exits are no failures
        self.is_closing = False  # the agent is about to leave: no rank is started any more
        self.stop: StopRequest | None = None
        self.is_urgent = False  # the person has pressed again: kill

    # ---- what follows from it

    @property
    def n_unplaced(self) -> int:
        """Return how many processes are there, or are being started, that are nobody's rank yet."""
        return self.n_being_started + sum(rank.rank < 0 and not rank.has_exited for rank in self.ranks)

    @property
    def are_ready(self) -> bool:
        """Return whether as many ranks as were asked for are up; others, for a restart, may still get ready."""
        return sum(rank.stage is Stage.READY and not rank.has_exited for rank in self.ranks) >= self.n_to_stand_by

    def readiness(self) -> p.Readiness:
        """Return how the ranks got ready, and what of the environment they have taken in."""
        return p.Readiness.of([rank.readiness for rank in self.ranks if rank.readiness is not None])

    # ---- the run

    def stand_by(self) -> None:
        """The agent is ready, and has no run."""
        with self.condition:
            self.is_standing_by = True
            self.condition.notify_all()

    def take_run(self, plan: p.Plan) -> None:
        """The agent has a run from now on: what is there becomes its agent and ranks."""
        with self.condition:
            self.plan, self.folder = plan, RunFolder(Path(plan.folder))
            self.was_ready = self.is_standing_by and self.are_ready and len(self.ranks) >= plan.world_size

    def begin_run(self) -> None:
        """The run that was taken is in the journal, and begins."""
        with self.condition:
            self.has_run, self.is_standing_by = True, False
            self.is_waited_for = not self.was_ready
            if self.was_ready:
                self.at_a_time = 0  # ranks for a restart that still get ready rest until `Spares` finds a core for them
            self.condition.notify_all()

    def lose_folder(self, error: OSError) -> None:
        """Nothing of the run can be kept: it ends at once, and says why."""
        with self.condition:
            self.folder_error = error
            self.condition.notify_all()

    def begin_attempt(self, *, is_last: bool) -> None:
        """Ranks get their places: their exits count from here on."""
        with self.condition:
            self.is_ending = False
            self.is_last_attempt = is_last
            self.condition.notify_all()

    def end_attempt(self) -> StopRequest | None:
        """What is left of an attempt is ended; return why the run is being stopped, if it is."""
        with self.condition:
            self.is_ending = True
            self.condition.notify_all()
            return self.stop

    def close(self) -> list[RankProcess]:
        """The agent is about to leave: no rank is started any more. Return those that are left."""
        with self.condition:
            self.is_ending = self.is_closing = True
            self.n_being_started = 0
            self.condition.notify_all()
            return list(self.ranks)

    def ask_to_stop(self, request: StopRequest) -> bool:
        """The run is to be stopped. Return whether this is the first that is heard of it: the first reason stays."""
        with self.condition:
            is_first = self.stop is None
            self.stop = self.stop or request
            self.condition.notify_all()
            return is_first

    def press_again(self) -> None:
        """The person who stops the run will not wait."""
        with self.condition:
            self.is_urgent = True
            self.condition.notify_all()

    # ---- ranks that get ready

    def want_ranks(self, count: int) -> None:
        """So many more ranks are to be started, if any."""
        with self.condition:
            self.n_being_started += max(0, count)

    def add_rank(self, rank: RankProcess) -> None:
        """One of those that were wanted is there."""
        with self.condition:
            self.n_being_started -= 1
            self.ranks.append(rank)
            self.condition.notify_all()

    def cannot_start(self, error: BaseException | None = None) -> None:
        """No rank can be started, or none is to be any more."""
        with self.condition:
            self.n_being_started = 0
            self.start_error = error or self.start_error
            self.condition.notify_all()

    def remove_ranks(self, ranks: Iterable[RankProcess]) -> None:
        """Ranks that have ended are reaped, and forgotten."""
        with self.condition:
            for rank in ranks:
                rank.reap()
                self.ranks.remove(rank)
            self.condition.notify_all()

    def wait_for_ranks(self, *, is_waited_for: bool) -> None:
        """Somebody waits for ranks that get ready, or does not any more."""
        with self.condition:
            if self.is_waited_for is not is_waited_for:
                self.is_waited_for = is_waited_for
                self.condition.notify_all()

    def set_pace(self, at_a_time: int | None) -> None:
        """So many ranks that nobody waits for get ready at the same time; None: all."""
        with self.condition:
            self.at_a_time = at_a_time
            self.condition.notify_all()
