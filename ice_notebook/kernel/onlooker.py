"""A run that another process controls, as one who has only opened its folder sees it: it goes on until its journal, or the end of who does it, says otherwise."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ice_notebook.errors import ControlError
from ice_notebook.host.identities import Identity, identity_of, is_alive
from ice_notebook.runs.state import RunState
from ice_notebook.runs.store import RunFolder
from ice_notebook.wire.frames import is_readable_within

if TYPE_CHECKING:
    from typing import Protocol

    from ice_notebook.wire import protocol as p

    class LookedAt(Protocol):
        """A run as this thread sees it."""

        plan: p.Plan

        @property
        def state(self) -> RunState:
            """Return how the run stands."""

        def take_journal(self, events: Sequence[Any]) -> None:
            """Stand as the journal says."""

        def take_logs(self) -> None:
            """Take what the log files hold."""

        def end(self) -> None:
            """Take note that the run is over."""


LOOK_S = 0.5  # nothing announces that a journal or a log has grown


def goes_on(folder: RunFolder, state: RunState) -> bool:
    """Return whether a run that has no end in its journal is known to go on: its agent is alive, or who controls it."""
    if state.phase.is_final:
        return False
    return (state.agent is not None and is_alive(state.agent) is True) or folder.is_owned() is True


class Onlooker(threading.Thread):
    """Looks at a run until it is over, or nobody here has the run any more."""

    def __init__(self, run: LookedAt, folder: RunFolder, agent: Identity | None) -> None:
        super().__init__(name=f"ice-look-{run.plan.run_id}", daemon=True)
        self._run = weakref.ref(run)
        self._folder = folder
        self._journal_bytes = -1  # that were read
        self._lock = threading.Lock()  # guards the descriptor: whoever signals by it must not meet another one's
        self._pidfd = _open(agent)

    def run(self) -> None:
        """See the class."""
        try:
            while self._look():
                if self._pidfd is None:
                    time.sleep(LOOK_S)
                elif is_readable_within(self._pidfd, LOOK_S):  # it has ended; who controls the run has yet to say how
                    self._close()
        finally:
            self._close()

    def ask_to_stop(self, *, is_urgent: bool) -> None:
        """Have the run stopped, by its agent.

        Raises:
            ControlError: its agent cannot be reached from here.
        """
        with self._lock:
            if self._pidfd is None:
                raise ControlError.elsewhere(self._folder.path)
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL if is_urgent else signal.SIGTERM)
            except ProcessLookupError:  # it has just ended
                return
            except PermissionError:
                raise ControlError.elsewhere(self._folder.path) from None

    def _look(self) -> bool:
        """Have the run stand as its folder says, and return whether it goes on."""
        run = self._run()
        if run is None:
            return False
        try:
            size_bytes = self._folder.journal_file.stat().st_size
            if size_bytes != self._journal_bytes:
                run.take_journal(self._folder.read_events())
                self._journal_bytes = size_bytes
            run.take_logs()
            is_over = run.state.phase.is_final
        except (OSError, msgspec.DecodeError):  # gone, or damaged: what was seen counts
            is_over = True
        if not is_over and self._pidfd is None:
            is_over = self._folder.is_owned() is not True
        if is_over:
            run.end()
        return not is_over

    def _close(self) -> None:
        with self._lock:
            if self._pidfd is not None:
                os.close(self._pidfd)
            self._pidfd = None


def _open(process: Identity | None) -> int | None:
    """Return a descriptor of a process that can be seen from here, None when there is none."""
    if process is None or is_alive(process) is not True:
        return None
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(process.pid)
        if identity_of(process.pid) == process:  # and so it is the one that the descriptor is of
            return pidfd
        os.close(pidfd)
    return None
