"""Starting ranks, and how many of them get ready at a time. Runs in the agent's io thread.

The parent-death signal that a rank asks for follows the thread that has started it.
"""

from __future__ import annotations

from collections.abc import Callable

from ice_notebook.agent.outbox import Outbox
from ice_notebook.agent.ranks import RankProcess, Stage, start_rank
from ice_notebook.agent.state import AgentState
from ice_notebook.host.writing import say
from ice_notebook.rank.server import RankServer
from ice_notebook.wire import control as c
from ice_notebook.wire import protocol as p

MOST_REPLACEMENTS = 3  # of standby ranks that die: then something is wrong with them, and a launch that fails will say what


class Starter:
    """See the module."""

    def __init__(
        self,
        preparation: p.Preparation,
        state: AgentState,
        outbox: Outbox,
        server: RankServer | None,
        watch: Callable[[RankProcess], None],
    ) -> None:
        """`server` forks ranks; without one they are started afresh. `watch` is called with each that was started."""
        self.preparation = preparation
        self._state = state
        self._outbox = outbox
        self._server = server
        self._watch = watch
        self._serial = 0
        self._n_replaced = 0  # standby ranks that died before there was a run

    @property
    def is_forking(self) -> bool:
        """Return whether ranks are forked."""
        return self._server is not None

    def keep_pace(self) -> None:
        """Have as many ranks get ready as may at a time: of others those that have begun rest, and the rest is not started yet."""
        state = self._state
        with state.condition:
            n_left = None if state.is_waited_for else state.at_a_time
            for rank in state.ranks:
                is_starting = rank.stage is Stage.STARTING and not rank.has_exited
                if is_starting and n_left == 0:
                    rank.rest()
                    continue
                rank.go_on()
                rank.preload()
                if is_starting and n_left is not None:
                    n_left -= 1
        while state.n_being_started and n_left != 0:
            self._start()
            n_left = None if n_left is None else n_left - 1

    def replace(self, rank: RankProcess) -> bool:
        """Want another process in the place of one that died while it stood by, unless that happens again and again; return whether it is."""
        self._n_replaced += 1
        if rank.is_preloading or self._n_replaced > MOST_REPLACEMENTS:
            self._outbox.post(c.Spoiled(body=rank.early))
            return False
        self._state.remove_ranks([rank])
        self._state.want_ranks(1)
        return True

    def resize(self, columns: int, rows: int) -> None:
        """Give the terminals of all ranks, also of those that are yet to be started, another size."""
        wiring = p.replace(self.preparation.wiring, columns=columns, rows=rows)
        self.preparation = p.replace(self.preparation, wiring=wiring)
        with self._state.condition:
            for rank in self._state.ranks:
                rank.resize(wiring)

    def preload(self, modules: tuple[str, ...]) -> None:
        """Have the ranks that stand by import more, as many as may at a time."""
        with self._state.condition:
            for rank in self._state.ranks:
                if rank.rank < 0 and rank.stage is Stage.READY:
                    rank.stage = Stage.STARTING
                    rank.is_preloading = True
                    rank.to_preload = modules
        self.keep_pace()

    def _start(self) -> None:
        # Held all the time: whoever is about to end all ranks must not miss one that is just being started.
        with self._state.condition:
            if self._state.is_closing:
                self._state.cannot_start()
                return
            try:
                rank = self._start_process()
            except OSError as error:
                self._state.cannot_start(error)
                return
            self._serial += 1
            self._state.add_rank(rank)
            self._watch(rank)

    def _start_process(self) -> RankProcess:
        """Return a new process, started afresh where the rank server cannot fork it. Raises OSError when there is none to be had."""
        if self._server is not None:
            try:
                return start_rank(self.preparation, self._serial, self._server)
            except OSError as error:
                say(f"ranks are not forked any more: {error}")
                self._server.close()
                self._server = None
        return start_rank(self.preparation, self._serial, None)
