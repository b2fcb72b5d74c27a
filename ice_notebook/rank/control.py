"""What a rank that has its place hears from its agent, and says to it. Runs in a rank."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from ice_notebook.wire.control import Begin, ForKernel, NotUnderstood, Unwind
from ice_notebook.wire.messages import Handlers, Message, MessageChannel, pack_message

_WHAT_CHARACTERS = 200
_own: Control | None = None


class Control(threading.Thread):
    """Hears the word to begin, that the rank is asked to stop, whatever else a feature wants to hear (`on`), and the agent's end.

    At that end it takes the whole process group along: this process the system kills anyway.

    It starts while the rank stands by: a launch would wait until the system has found time for a new thread.
    """

    def __init__(self, channel: MessageChannel[Any]) -> None:
        super().__init__(name="ice-control", daemon=True)
        self._channel = channel
        self._listens = threading.Event()
        self._on_stop: Callable[[], None] = lambda: None
        # All ranks have accepted. Until then one may still be replaced, and no function or script begins.
        self.begun = threading.Event()
        self._handlers = Handlers({Begin: lambda _: self.begun.set(), Unwind: lambda _: self._on_stop()})

    @property
    def kinds(self) -> frozenset[type[Message]]:
        """Return the kinds of messages that it knows."""
        return self._handlers.kinds

    def on(self, kind: type[Message], method: Callable[[Any], Any]) -> None:
        """Have messages of one more kind taken by a method, which is called in this thread. Say so before they can come."""
        self._handlers.on(kind, method)

    def tell(self, message: Message) -> None:
        """Say something to the agent."""
        # An interrupt in the middle would leave half a message behind.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with contextlib.suppress(OSError):  # the agent is gone, and this process is about to be
                self._channel.send(message)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def tell_kernel(self, message: Message) -> None:
        """Say something to whoever controls the run. Nobody on the way need know it."""
        self.tell(ForKernel(body=pack_message(message)))

    def listen(self, on_stop: Callable[[], None]) -> None:
        """Hear the agent from here on; nobody else receives any more. `on_stop` is called, in this thread, when the agent asks to stop."""
        global _own  # noqa: PLW0603 - of this process
        _own = self
        self._on_stop = on_stop
        self._listens.set()

    def run(self) -> None:
        """See the class."""
        pid = os.getpid()
        self._listens.wait()
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._take(self._channel.receive_frame())
        if os.getpid() == pid:
            os.killpg(os.getpgrp(), signal.SIGKILL)

    def _take(self, frame: Any) -> None:
        try:
            self._handlers.take_frame(frame)
        except msgspec.DecodeError:
            self.tell(NotUnderstood(what=frame.head[:_WHAT_CHARACTERS].decode(errors="replace")))
        except Exception:  # of one feature: the agent's end must still be heard
            traceback.print_exc()


def own() -> Control | None:
    """Return what this process hears its agent by; None in a process that is no rank at work."""
    return _own
