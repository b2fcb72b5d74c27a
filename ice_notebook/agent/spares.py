"""Ranks that an agent keeps ready for a restart."""

from __future__ import annotations

import threading

from ice_notebook.agent.io import AgentIO
from ice_notebook.host import cores

MOST_WAIT_S = 5.0  # they weigh least while they get ready: a run that never leaves a core idle hardly feels it, and saves an import at each restart


class Spares(threading.Thread):
    """Starts them when the run leaves a core idle, so that a restart need not wait for imports."""

    def __init__(self, io: AgentIO, count: int) -> None:
        super().__init__(name="ice-spares", daemon=True)
        self._io = io
        self._count = count
        self._over = threading.Event()

    def run(self) -> None:
        """Start them once."""
        if n_cores := cores.wait_for_leisure(self._over.wait, MOST_WAIT_S):
            with self._io.condition:
                if not self._io.state.is_ending:
                    self._io.state.set_pace(n_cores)
                    self._io.start_ranks(self._count - self._io.state.n_unplaced)

    def cancel(self) -> None:
        """Start none any more: the attempt is over."""
        self._over.set()
