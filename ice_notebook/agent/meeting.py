"""What an agent of several nodes knows of the others: rounds that begin and are over, by the word of the coordinator. No torch here.

The coordinator is in the agent that has started the run; that agent's own meeting talks to it directly, those of other nodes through the
process that has joined, which is their kernel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ice_notebook.wire import node_messages as m


class RunOverError(Exception):
    """The run is over, by the word of the coordinator: there is nothing more to be done here."""


class Meeting:
    """See the module. `condition` is the agent's, and guards all here."""

    def __init__(self, condition: threading.Condition, tell: Callable[[Any], None]) -> None:
        self._condition = condition
        self.tell = tell  # a message to the coordinator
        self.on_over: Callable[[int], None] = lambda _: None  # called with the number of a round, by whoever hears of it
        self._round: m.Round | None = None
        self._over: dict[int, m.Over] = {}
        self._finished = -1
        self._told_done = -1
        self._told_failed = -1

    def take(self, message: Any) -> None:
        """Hear the coordinator."""
        with self._condition:
            if isinstance(message, m.Round):
                self._round = message
            elif isinstance(message, m.Over):
                self._over[message.number] = message
                self.on_over(message.number)
            elif isinstance(message, m.Finish):
                self._finished = message.number
            self._condition.notify_all()

    def next_round(self, last: int, is_stopped: Callable[[], bool]) -> m.Round | None:
        """Say that this agent is ready, and wait for the round after `last`; None when the run is being stopped.

        Raises:
            RunOverError: there will be none.
        """
        self.tell(m.NodeReady())
        with self._condition:
            while not is_stopped():
                self._raise_if_run_is_over()
                if self._round is not None and self._round.number > last and self._round.number not in self._over:
                    return self._round
                self._condition.wait()
        return None

    def is_over(self, number: int) -> bool:
        """Return whether a round is over before its end, and another is to begin.

        Raises:
            RunOverError: none is to begin.
        """
        with self._condition:
            self._raise_if_run_is_over()
            return number in self._over

    def wait_over(self, number: int, is_stopped: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until a round is over before its end, or the run is being stopped, and return whether it is. Raises as `is_over` does."""
        with self._condition:
            return self._condition.wait_for(lambda: is_stopped() or self.is_over(number), timeout_s)

    def is_finished(self, number: int) -> bool:
        """Say that the ranks of this node are done with a round, and return whether those of all nodes are."""
        with self._condition:
            if self._told_done != number:
                self._told_done = number
                self.tell(m.Done(number=number))
            return self._finished == number

    def tell_failed(self, failure: m.RoundFailed) -> None:
        """Say that a rank of this node has failed, once a round."""
        with self._condition:
            if self._told_failed != failure.number:
                self._told_failed = failure.number
                self.tell(failure)

    def _raise_if_run_is_over(self) -> None:
        for over in self._over.values():
            if not over.restarting:
                raise RunOverError(over.why)
