"""A run without processes: it plays a scripted history of events and output from a thread, and can be stopped. For unit tests and cells."""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from ice_notebook.host.identities import Identity
from ice_notebook.runs.logs import RunLogs
from ice_notebook.runs.state import RunState
from ice_notebook.wire import protocol as p

AGENT = Identity(pid=99, started=1, boot="of a machine", namespace="of it", host="box/1")
TICK_S = 0.1  # as a run does: views are told at most this often


def make_plan(n: int = 2, name: str = "train", device: str = "cpu", **changes: Any) -> p.Plan:
    fields: dict[str, Any] = {
        "run_id": "fake",
        "name": name,
        "folder": "/runs/fake",
        "ranks": tuple(p.RankPlan(local_rank=i, device=f"{device}:{i}", assigned_device=device) for i in range(n)),
        "devices": f"{device}:0-{n - 1}" if n > 1 else f"{device}:0",
        "device_type": device,
        "dist_backend": "gloo",
        "environment": {},
        "sys_path": (),
        "umask": 0o22,
        "kernel_pid": 0,
        **changes,
    }
    # The others are texts that nothing but an agent reads.
    texts = {f.name: "" for f in msgspec.structs.fields(p.Plan) if f.required and f.name not in fields}
    return p.Plan(**texts, **fields)


def out(rank: int, text: str, attempt: int = 0) -> tuple[int, int, bytes]:
    """Return output of a rank, as it leaves its terminal."""
    return attempt, rank, text.replace("\n", "\r\n").encode()


def begun(n: int, attempt: int = 0, at: float = 1000.0, device: str = "cpu") -> list[Any]:
    """Return the events up to the point at which all ranks run."""
    ranks = tuple(p.RankStart(rank=i, local_rank=i, device=f"{device}:{i}", pid=4100 + i) for i in range(n))
    first = [p.RunBegun(at=at, agent=AGENT)] if attempt == 0 else []
    start = p.AttemptBegun(at=at, attempt=attempt, restart_count=attempt, world_size=n, ranks=ranks)
    return [*first, start, *(p.RankRunning(at=at, attempt=attempt, rank=i) for i in range(n))]


def value(text: str, type_name: str = "dict", html: str = "", size: int = 212) -> p.Value:
    return p.Value(path="", size_bytes=size, type_name=type_name, text=text, html=html)


def returned(values: Iterable[p.Value], attempt: int = 0, at: float = 1041.0) -> list[Any]:
    """Return the events of ranks that return, and of the run's end."""
    events: list[Any] = []
    for rank, one in enumerate(values):
        events.append(p.RankReturned(at=at, attempt=attempt, rank=rank, value=one))
        events.append(p.RankExited(at=at, attempt=attempt, rank=rank, exit_code=0))
    return [*events, p.RunEnded(at=at, outcome=p.Outcome.SUCCEEDED)]


FAILURE = p.Failure(
    kind="raised",
    at=1041.0,
    headline="ZeroDivisionError: division by zero",
    type_name="ZeroDivisionError",
    exit_code=1,
    excerpt=p.Excerpt(
        where="Cell In[7]",
        first=7,
        lines=(
            "    for step, batch in enumerate(loader):",
            "        loss = model(batch).mean()",
            "        scale = 1 / (launcher.rank - 1)",
            "        (loss * scale).backward()",
            "        optimizer.step()",
        ),
        failing=9,
    ),
    traceback="Traceback (most recent call last):\n  Cell In[7], line 9, in train(launcher)\n    scale = 1 / (launcher.rank - 1)\n"
    "            ~~^~~~~~~~~~~~~~~~~~~~~\nZeroDivisionError: division by zero\n",
)
ECHO = p.Failure(
    kind="raised", headline="RuntimeError: Connection closed by peer [127.0.0.1]:36027", exit_code=1, is_communication=True
)


def failed(
    n: int, root: int = 1, attempt: int = 0, at: float = 1041.0, *, restarting: bool = False, echo: int | None = None
) -> list[Any]:
    """Return the events of an attempt in which one rank raises."""
    events: list[Any] = [p.RankFailed(at=at, attempt=attempt, rank=root, failure=FAILURE)]
    if echo is not None:
        events.append(p.RankFailed(at=at, attempt=attempt, rank=echo, failure=ECHO))
    events += [p.RankExited(at=at, attempt=attempt, rank=i, exit_code=1 if i == root else -15) for i in range(n)]
    events.append(p.AttemptFailed(at=at, attempt=attempt, root=root, restarting=restarting))
    return events if restarting else [*events, p.RunEnded(at=at, outcome=p.Outcome.FAILED)]


class FakeRun:
    """Plays `script`: events, output as `out()` gives it, bars by rank, and numbers, which are seconds to wait. `real_time` replaces the events' times.

    With `keeps_files` its output is in log files as well, as that of a real run. Without a thread (`start=False`) `play()` does all of it at once and tells nobody; a test then calls `update()` of the view itself.
    """

    id = "fake"

    def __init__(
        self,
        script: Iterable[Any] = (),
        *,
        plan: p.Plan | None = None,
        start: bool = False,
        grace_s: float = 0.3,
        keeps_files: bool = False,
    ) -> None:
        self.script = list(script)
        self.plan = plan or make_plan()
        self.state = RunState()
        self.progress: dict[int, list[Any]] = {}
        self._files = Path(tempfile.mkdtemp(prefix="ice-fake-")) if keeps_files else None
        self.logs = RunLogs(self.log_file)
        self.folder = Path(tempfile.gettempdir()) / "ice_notebook" / "20260721-0930-k3v9"
        self.calls: list[tuple[str, float]] = []
        self.views: list[Any] = []
        self.ended = threading.Event()
        self._grace_s = grace_s
        self._news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        if start:
            self.start()

    def log_file(self, attempt: int, rank: int) -> Path:
        return self._files / f"{attempt}.{rank}" if self._files is not None else Path(os.devnull)

    def start(self) -> FakeRun:
        self._thread.start()
        threading.Thread(target=self._play, daemon=True).start()
        return self

    def stop(self) -> None:
        self.calls.append(("stop", time.monotonic()))
        self._news.put("stop")

    def kill(self) -> None:
        self.calls.append(("kill", time.monotonic()))
        self._news.put("kill")

    def subscribe(self, view: Any) -> None:
        self.views.append(view)

    def wait(self, seconds: float = 60.0) -> str:
        """Wait as a cell does: an interrupt stops the run."""
        end = time.monotonic() + seconds
        while not self.ended.is_set() and time.monotonic() < end:
            try:
                self.ended.wait(0.1)
            except KeyboardInterrupt:
                self.calls.append(("interrupt", time.monotonic()))
                self._news.put("interrupt")
        return self.state.phase.value

    def play(self, script: Iterable[Any] | None = None) -> None:
        """Take all of a script at once, in this thread."""
        for item in self.script if script is None else script:
            self._take(item)

    def _play(self) -> None:
        for item in self.script:
            if isinstance(item, int | float):
                time.sleep(item)
            else:
                self._news.put(item)

    def _take(self, item: Any) -> None:
        if isinstance(item, tuple):
            attempt, rank, data = item
            if self._files is not None:
                with self.log_file(attempt, rank).open("ab") as file:
                    file.write(data)
            self.logs.feed(attempt, rank, data)
        elif isinstance(item, dict):
            self.progress = item
        elif isinstance(item, str):
            self._stop(item)
        elif not isinstance(item, int | float):
            self.state = self.state.apply(item)

    def _stop(self, reason: str) -> None:
        if self.state.phase.is_final:
            return
        self.state = self.state.apply(p.StopAsked(at=time.time(), reason=p.StopReason(reason)))

        def end() -> None:
            if reason != "kill":
                time.sleep(self._grace_s)
            for rank in self.state.ranks:
                self._news.put(p.RankExited(at=time.time(), attempt=self.state.attempts[-1].number, rank=rank, exit_code=-15))
            self._news.put(p.RunEnded(at=time.time(), outcome=p.Outcome.STOPPED))

        threading.Thread(target=end, daemon=True).start()

    def _follow(self) -> None:
        due: dict[int, float] = {}
        is_new = True
        while True:
            now = time.monotonic()
            for i, view in enumerate(self.views):
                if is_new or due.get(i, now + 1) <= now:
                    again = view.update()
                    due.pop(i, None)
                    if again is not None:
                        due[i] = time.monotonic() + again
            if self.state.phase.is_final:
                self.ended.set()
                if not due:
                    return
            time.sleep(TICK_S)
            is_new = False
            try:
                while True:
                    item = self._news.get(timeout=0 if is_new else max(0.0, min(due.values(), default=now + 1) - time.monotonic()))
                    self._take(item)
                    is_new = True
            except queue.Empty:
                continue


def now(events: Iterable[Any]) -> list[Any]:
    """Return events as if they happened now."""
    at = time.time()
    return [msgspec.structs.replace(event, at=at) if isinstance(event, p.Event) else event for event in events]
