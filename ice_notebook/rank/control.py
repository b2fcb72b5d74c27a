"""The agent's words to a rank that has its place. Runs in a rank."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable

from ice_notebook.wire.frames import Channel


class Control(threading.Thread):
    """Hears the word to begin, that the rank is asked to stop, and the agent's end.

    At that end it takes the whole process group along: this process the system kills anyway.

    It starts while the rank stands by: a launch would wait until the system has found time for a new thread.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__(name="ice-control", daemon=True)
        self._channel = channel
        self._listens = threading.Event()
        self._on_stop: Callable[[], None] = lambda: None
        # All ranks have accepted. Until then one may still be replaced, and no function or script begins.
        self.begun = threading.Event()

    def listen(self, on_stop: Callable[[], None]) -> None:
        """Hear the agent from here on; nobody else receives any more. `on_stop` is called, in this thread, when the agent asks to stop."""
        self._on_stop = on_stop
        self._listens.set()

    def run(self) -> None:
        """See the class."""
        pid = os.getpid()
        self._listens.wait()
        with contextlib.suppress(EOFError, OSError):
            while True:
                frame = self._channel.receive()
                if frame.kind == "begin":
                    self.begun.set()
                elif frame.kind == "stop":
                    self._on_stop()
        if os.getpid() == pid:
            os.killpg(os.getpgrp(), signal.SIGKILL)
