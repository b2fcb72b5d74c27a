"""A client of a store that another node has, or will have soon, within a time. Runs in the agent.

torch's client waits for ever for a listener that accepts and never speaks, as a tunnel does whose other end is not there yet; a name service may take
long. So each try is made in a thread, which is left to itself when nothing comes of it.
"""

from __future__ import annotations

import datetime as dt
import socket
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

CONNECT_S = 2.0  # for one connection
SILENT_S = 10.0  # a store says so much within milliseconds; after this another try is made beside one that hangs
_PAUSE_S = 0.1  # between a try that failed and the next


class _Try(threading.Thread):
    def __init__(self, host: str, port: int, prepare: Callable[[], str | None]) -> None:
        super().__init__(name="ice-reach", daemon=True)
        self._place = host, port
        self._prepare = prepare
        self.began_at = time.monotonic()
        self.client: dist.TCPStore | None = None
        self.why = ""
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        host, port = self._place
        try:
            host = self._prepare() or host
        except Exception as error:
            self.error = error
            return
        try:
            # Ours first: torch's would try for a while whatever the error is, and write a page about it into the log.
            socket.create_connection((host, port), CONNECT_S).close()
            self.client = dist.TCPStore(host, port, is_master=False, timeout=dt.timedelta(seconds=CONNECT_S))
        except socket.gaierror as error:
            self.why = f"the host is not known here ({error.strerror})"
        except ConnectionRefusedError:
            self.why = "nothing listens there"
        except TimeoutError:
            self.why = "nothing answers there"
        except OSError as error:
            self.why = error.strerror or str(error)
        except dist.DistError:
            self.why = "what listens there is no store of torch's, or ends just now"


class Reaching:
    """Tries to reach a store, until one succeeds. `why` says why the last that failed did, empty before.

    `prepare` is called before each try, in its thread, and may return another host that leads there. What it raises `look` raises.
    """

    def __init__(self, host: str, port: int, prepare: Callable[[], str | None] = lambda: None) -> None:
        self._place = host, port, prepare
        self._try: _Try | None = None
        self.why = ""

    def look(self, wait_s: float) -> dist.TCPStore | None:
        """Wait for a client, `wait_s` seconds at most, and return it."""
        if self._try is None:
            self._try = _Try(*self._place)
        tried = self._try
        tried.join(wait_s)
        if tried.is_alive():
            if time.monotonic() > tried.began_at + CONNECT_S:
                self.why = "what listens there does not answer"
            if time.monotonic() > tried.began_at + SILENT_S:
                self._try = None
            return None
        self._try = None
        if tried.error is not None:
            raise tried.error
        if tried.client is None:
            self.why = tried.why
            time.sleep(min(wait_s, _PAUSE_S))
        return tried.client
