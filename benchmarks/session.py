"""A fresh kernel and its client: cells go in, messages with the time of their arrival come out."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Message:
    """A message that a client receives, with all the text in it that a page could show."""

    at: float  # seconds since the epoch, as everything that ranks report
    kind: str
    text: str
    size_bytes: int
    made_at: float = 0.0  # by the kernel


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
        try:
            message = self._client.get_iopub_msg(timeout=timeout_s)
        except queue.Empty:
            return
        at = time.time()
        kind, content = message["msg_type"], message["content"]
        if kind == "status":
            is_ours = message["parent_header"].get("msg_id") == request
            if is_ours and content["execution_state"] == "idle":
                cell.idle_at = at
            return
        text = _text_of(kind, content, message.get("buffers") or [])
        cell.messages.append(Message(at, kind, text, len(text), message["header"]["date"].timestamp()))

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


def _text_of(kind: str, content: dict[str, Any], buffers: list[Any]) -> str:
    if kind == "stream":
        return str(content["text"])
    if kind == "error":
        return "\n".join([f"{content['ename']}: {content['evalue']}", *content["traceback"]])
    if kind in {"comm_msg", "comm_open"}:
        parts = [json.dumps(content["data"]), *(bytes(buffer).decode(errors="replace") for buffer in buffers)]
        return "\n".join(parts)
    return json.dumps(content.get("data", content))


__all__ = ["Cell", "Message", "Session", "Work", "fresh", "read_notes"]
