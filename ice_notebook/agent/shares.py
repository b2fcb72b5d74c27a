"""What each rank of an agent weighs when processors are short: less than what shows it, and hardly anything while nobody waits for it."""

from __future__ import annotations

import threading
import time

from ice_notebook.agent.io import AgentIO
from ice_notebook.agent.ranks import RankProcess, Stage
from ice_notebook.host import cores


class Shares(threading.Thread):
    """Tells the system, one rank after the other: ordinary users are heard once every ASK_AGAIN_S.

    It looks no oftener than that: a launch would wake it a dozen times in its first milliseconds, which belong to the ranks.
    """

    def __init__(self, io: AgentIO) -> None:
        super().__init__(name="ice-shares", daemon=True)
        self._io = io
        self._told: dict[int, int] = {}  # by pid; 0, a whole session's weight, is what a rank begins with

    def run(self) -> None:
        """Tell for as long as this process lives."""
        io = self._io
        while True:
            with io.condition:
                if not self._due():
                    io.condition.wait()
            time.sleep(cores.ASK_AGAIN_S)
            with io.condition:  # a rank that is in the list has not been reaped: its number is its own
                for pid, nice in self._due():
                    if not cores.weigh(pid, nice):
                        break
                    self._told[pid] = nice

    def _due(self) -> list[tuple[int, int]]:
        """Return the ranks that do not weigh yet what they should, with what that is."""
        known = {rank.pid: self._nice(rank) for rank in self._io.state.ranks if not rank.has_exited}
        self._told = {pid: nice for pid, nice in self._told.items() if pid in known}
        return [(pid, nice) for pid, nice in known.items() if nice != self._told.get(pid, 0)]

    def _nice(self, rank: RankProcess) -> int:
        if rank.rank >= 0:
            return cores.nice_of_part(sum(other.rank >= 0 and not other.has_exited for other in self._io.state.ranks))
        is_for_later = rank.stage is Stage.STARTING and not self._io.state.is_waited_for
        return cores.LEAST_NICE if is_for_later else 0
