"""A fresh kernel and its client: cells go in, messages with the time of their arrival come out."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import psutil
from jupyter_client.manager import KernelManager

from benchmarks import family
from benchmarks.work import Work

ROOT = Path(__file__).resolve().parents[1]
CACHE = "cache"  # of the user, as kernels see it, in the scratch folder
CELL_LIMIT_S = 120.0
# Settings of the shell that a user's kernel does not have: no module would be kept compiled, and buffering would be hidden.
_NOT_PASSED_ON = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
_SHUTDOWN_WAIT_S = 3.0  # a kernel that still waits for a hung launch does not hear
SETTLE_S = 0.5  # after the end of a cell: what is still on its way arrives, and teardown of the launch before is over


class Message:
    """A message that a client receives. It is read when somebody asks: a client that reads takes processors from what it measures."""

    def __init__(self, at: float, header: dict[str, Any], content: bytes, buffers: Sequence[bytes]) -> None:
        self.at = at  # seconds since the epoch, as everything that ranks report
        self.kind: str = header["msg_type"]
        self.made_at = datetime.fromisoformat(header["date"]).timestamp()  # by the kernel
        self._content = content
        self._buffers = buffers

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self._content)
        return content

    @functools.cached_property
    def text(self) -> str:
        """All text in it that a page could show."""
        content = self.content
        if self.kind == "stream":
            return str(content["text"])
        if self.kind == "error":
            return "\n".join([f"{content['ename']}: {content['evalue']}", *content["traceback"]])
        if self.kind in {"comm_msg", "comm_open"}:
            return "\n".join([json.dumps(content["data"]), *(buffer.decode(errors="replace") for buffer in self._buffers)])
        return json.dumps(content.get("data", content))

    @property
    def size_bytes(self) -> int:
        return len(self.text)


@dataclass
class Cell:
    """What a cell has caused."""

    sent_at: float
    messages: list[Message] = field(default_factory=list)
    idle_at: float | None = None  # None: it did not end in time

    @property
    def has_error(self) -> bool:
        return any(message.kind == "error" for message in self.messages)

    @property
    def error(self) -> str:
        """Return the text of the error that ended the cell."""
        return "\n".join(message.text for message in self.messages if message.kind == "error")

    @property
    def shown(self) -> str:
        """Return all text that came, but the echo of the cell itself."""
        return "\n".join(message.text for message in self.messages if message.kind != "execute_input")

    @property
    def begun_at(self) -> float:
        """Return when the kernel began the cell."""
        return next(message.made_at for message in self.messages if message.kind == "execute_input")

    def first(self, holds: Callable[[str], Any]) -> float | None:
        """Return when the first message came whose text is as asked, None if none came."""
        return next((m.at for m in self.messages if m.kind != "execute_input" and holds(m.text)), None)


class Session:
    """A kernel in a session of its own, whose descendants all carry a marker. Use as a context manager: nothing of it is left after."""

    def __init__(self, scratch: Path) -> None:
        self.marker = secrets.token_hex(12)
        self._scratch = scratch
        self._n_folders = 0
        environment = {
            **{name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON},
            family.MARKER: self.marker,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",  # as torchrun does
            # The user's run folders and history are not touched.
            "XDG_CACHE_HOME": str(scratch / CACHE),
            "IPYTHONDIR": str(scratch / "ipython"),
        }
        self._manager = KernelManager(kernel_name="python3", shutdown_wait_time=_SHUTDOWN_WAIT_S)
        self._manager.start_kernel(
            env=environment, cwd=str(scratch), extra_arguments=["--IPKernelApp.log_level=50"], stdout=DEVNULL, stderr=DEVNULL
        )
        self._client = self._manager.blocking_client()
        try:
            self._client.start_channels()
            self._client.wait_for_ready(timeout=60)
        except BaseException:
            self.close()
            raise
        provisioner: Any = self._manager.provisioner
        self.pid: int = provisioner.pid

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Shut the kernel down, so that it can give back what it holds, and kill whatever is left."""
        self._client.stop_channels()
        with contextlib.suppress(RuntimeError):  # it is dead already
            self._manager.shutdown_kernel(now=False)
        family.end(self.marker)

    # ---- cells

    def run(self, code: str, *, limit_s: float = CELL_LIMIT_S, while_waiting: Callable[[Cell], None] | None = None) -> Cell:
        """Run a cell, and return when it is idle or the time is over. `while_waiting` is called between messages, at least every 50 ms."""
        cell = Cell(time.time())
        request = self._client.execute(code, allow_stdin=False)
        while cell.idle_at is None and time.time() - cell.sent_at < limit_s:
            self._receive(cell, request, timeout_s=0.05)
            if while_waiting is not None:
                while_waiting(cell)
        return cell

    def settle(self, cell: Cell, seconds: float = SETTLE_S) -> Cell:
        """Take what still arrives after the end of a cell."""
        until = time.time() + seconds
        while (left := until - time.time()) > 0:
            self._receive(cell, "", timeout_s=left)
        return cell

    def check(self, code: str) -> Cell:
        """Run a cell that must not fail."""
        cell = self.run(code)
        if cell.has_error or cell.idle_at is None:
            raise RuntimeError(f"the cell failed:\n{code}\n{cell.error or 'it did not end'}")
        return cell

    def value(self, expression: str) -> Any:
        """Return the value of an expression in the kernel; it travels as JSON."""
        cell = self.settle(self.check(f"import json as _json; print('@' + _json.dumps({expression}))"), 0.05)
        text = "".join(m.text for m in cell.messages if m.kind == "stream")
        return json.loads(text[text.index("@") + 1 :].splitlines()[0])

    def interrupt(self) -> None:
        """Do what a notebook's stop button does: SIGINT to the kernel's process group."""
        self._manager.interrupt_kernel()

    def _receive(self, cell: Cell, request: str, timeout_s: float) -> None:
        socket = self._client.iopub_channel.socket
        assert socket is not None
        if not socket.poll(1000 * timeout_s):
            return
        at = time.time()
        _, (_signature, header, parent, _metadata, content, *buffers) = self._client.session.feed_identities(
            socket.recv_multipart()
        )
        message = Message(at, json.loads(header), content, buffers)
        if message.kind != "status":
            cell.messages.append(message)
        elif message.content["execution_state"] == "idle" and json.loads(parent).get("msg_id") == request:
            cell.idle_at = at

    # ---- processes

    def kernel_cpu_s(self) -> float:
        """Return the CPU time of the kernel process."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def others(self) -> list[int]:
        """Return the living processes that descend from the kernel."""
        return [pid for pid in family.members(self.marker) if pid != self.pid]

    # ---- notes of ranks

    def new_folder(self) -> Path:
        """Return an empty folder for one launch's notes."""
        self._n_folders += 1
        folder = self._scratch / f"notes-{self.marker}-{self._n_folders}"
        folder.mkdir()
        return folder


def read_notes(folder: Path) -> dict[int, dict[str, float]]:
    """Return what the ranks have noted so far, by rank."""
    return {int(path.stem): json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


@contextlib.contextmanager
def fresh(scratch: Path, setup: str) -> Iterator[Session]:
    """Yield a fresh kernel in which the setup cell has been run."""
    with Session(scratch) as session:
        session.check(setup)
        yield session


__all__ = ["Cell", "Message", "Session", "Work", "fresh", "read_notes"]
