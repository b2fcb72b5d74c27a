"""The agent's words to a rank that has its place. Runs in a rank."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

from ice_notebook.frames import Channel


class Control(threading.Thread):
    """Hears the word to begin, then the agent's end, and takes the whole process group along: this process the system kills anyway.

    It starts while the rank stands by: a launch would wait until the system has found time for a new thread.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__(name="ice-control", daemon=True)
        self._channel = channel
        self._listens = threading.Event()
        # All ranks have accepted. Until then one may still be replaced, and no function or script begins.
        self.begun = threading.Event()

    def listen(self) -> None:
        """Hear the agent from here on; nobody else receives any more."""
        self._listens.set()

    def run(self) -> None:
        """See the class."""
        pid = os.getpid()
        self._listens.wait()
        with contextlib.suppress(EOFError, OSError):
            self._channel.receive()
            self.begun.set()
            self._channel.receive()  # nothing more is said
        if os.getpid() == pid:
            os.killpg(os.getpgrp(), signal.SIGKILL)
