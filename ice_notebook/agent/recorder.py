"""What happens, written to the journal and told to the kernel."""

from __future__ import annotations

import threading
import time
from typing import Any

from ice_notebook.agent.outbox import Outbox
from ice_notebook.host.writing import Loss, say
from ice_notebook.runs.store import JOURNAL_RESERVE_BYTES, Journal, RunFolder
from ice_notebook.wire import protocol as p
from ice_notebook.wire.control import Happened


class Recorder:
    """See the module. Any thread may record."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._lock = threading.Lock()
        self._journal: Journal | None = None

    def open(self, folder: RunFolder) -> None:
        """Have a journal from now on.

        Raises:
            OSError: there is no room, or the folder is gone.
        """
        self._journal = Journal(folder.journal_file, reserve_bytes=JOURNAL_RESERVE_BYTES)

    def record(self, event: Any, *, is_alone: bool = True) -> None:
        """Write an event to the journal and tell the kernel, with the next one if that is about to come."""
        with self._lock:
            try:
                if self._journal is not None:
                    self._journal.append(event)
            except OSError as error:  # the disk is full: the run goes on, and the kernel hears of it
                say(f"not in the journal yet: {event}: {error}")
            post = self._outbox.post if is_alone else self._outbox.post_later
            post(Happened(event=event))

    def record_loss(self, attempt: int, rank: int, loss: Loss, *, is_end: bool = False) -> None:
        """Record that output of a rank is missing in its log files, when that is news."""
        if loss.is_news(is_end=is_end):
            say(f"rank {rank}: {loss.size_bytes} bytes of its output are not in its log files so far: {loss.why}")
            self.record(p.OutputLost(at=time.time(), attempt=attempt, rank=rank, size_bytes=loss.size_bytes, reason=loss.why))

    def close(self) -> None:
        """Write nothing more to the journal."""
        if self._journal is not None:
            self._journal.close()
