"""Histories of runs, for tests that replay them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import reduce
from typing import Any

import msgspec

from ice_notebook.host.identities import Identity
from ice_notebook.runs.state import RunState
from ice_notebook.wire import protocol as p

SOURCE = (
    "def train():",
    "    for step in range(3):",
    "        loss = step",
    '        raise ValueError("bad loss")',
    "    return loss",
)


def plan(world_size: int = 2, **changes: Any) -> p.Plan:
    settled: dict[str, Any] = {
        "run_id": "3f9c2a7d",
        "name": "train(launcher)",
        "folder": "/home/someone/.cache/ice_notebook/3f9c2a7d",
        "ranks": tuple(p.RankPlan(local_rank=n, device=f"cpu:{n}", assigned_device="cpu") for n in range(world_size)),
        "devices": f"cpu:0-{world_size - 1}" if world_size > 1 else "cpu:0",
        "device_type": "cpu",
        "dist_backend": "gloo",
        "max_restarts": 3,
        "environment": {"HOME": "/home/someone"},
        "sys_path": ("/home/someone",),
        "umask": 0o22,
        "kernel_pid": 4711,
        **changes,
    }
    # The others are paths and names that nothing but an agent reads.
    paths = {f.name: f"/home/someone/{f.name}" for f in msgspec.structs.fields(p.Plan) if f.required and f.name not in settled}
    return msgspec.convert({**paths, **msgspec.to_builtins(settled)}, p.Plan)


def identity(pid: int, started: int = 3) -> Identity:
    """A process of some other machine."""
    return Identity(pid=pid, started=started, boot="of a machine", namespace="of it", host="box/1")


class History:
    """Events in the order in which they are told, a tenth of a second apart."""

    def __init__(self, world_size: int = 2, *, start: float = 1_700_000_000.0) -> None:
        self.world_size = world_size
        self.attempt = -1
        self.clock = itertools.count()
        self.start = start
        self.events: list[Any] = []
        self._replayed = (0, RunState())
        self.add(p.RunBegun, agent=identity(555))

    def add(self, kind: Any, /, **fields: Any) -> History:
        self.events.append(kind(at=self.start + next(self.clock) / 10, **fields))
        return self

    def begin(self, restart_count: int | None = None, *, running: bool = True) -> History:
        self.attempt += 1
        count = self.attempt if restart_count is None else restart_count
        ranks = tuple(
            p.RankStart(rank=n, local_rank=n, device=f"cpu:{n}", pid=9000 + 10 * self.attempt + n) for n in range(self.world_size)
        )
        self.add(p.AttemptBegun, attempt=self.attempt, restart_count=count, world_size=self.world_size, ranks=ranks, start="cold")
        for rank in range(self.world_size * running):
            self.add(p.RankRunning, attempt=self.attempt, rank=rank)
        return self

    def returns(self, rank: int, text: str = "None", html: str = "", type_name: str = "dict") -> History:
        value = p.Value(path=f"/dev/shm/ice-3f9c2a7d/{rank}", size_bytes=9, type_name=type_name, text=text, html=html)
        return self.add(p.RankReturned, attempt=self.attempt, rank=rank, value=value)

    def succeeds(self, rank: int) -> History:
        return self.add(p.RankSucceeded, attempt=self.attempt, rank=rank).exits(rank)

    def loses(self, rank: int, reason: str) -> History:
        return self.add(p.ValueLost, attempt=self.attempt, rank=rank, reason=reason)

    def fails(self, rank: int, failure: p.Failure | None = None) -> History:
        return self.add(p.RankFailed, attempt=self.attempt, rank=rank, failure=failure or raised())

    def exits(self, rank: int, exit_code: int = 0, note: str = "") -> History:
        return self.add(p.RankExited, attempt=self.attempt, rank=rank, exit_code=exit_code, note=note)

    def loses_output(self, rank: int, size_bytes: int) -> History:
        reason = "No space left on device"
        return self.add(p.OutputLost, attempt=self.attempt, rank=rank, size_bytes=size_bytes, reason=reason)

    def group_fails(self, root: int, *, restarting: bool = False) -> History:
        return self.add(p.AttemptFailed, attempt=self.attempt, root=root, restarting=restarting)

    def stop(self, reason: str = "stop") -> History:
        return self.add(p.StopAsked, reason=p.StopReason(reason))

    def end(self, outcome: p.Outcome = p.Outcome.SUCCEEDED, reason: str = "") -> History:
        return self.add(p.RunEnded, outcome=outcome, reason=reason)

    @property
    def state(self) -> RunState:
        n, state = self._replayed
        self._replayed = (len(self.events), reduce(RunState.apply, self.events[n:], state))
        return self._replayed[1]

    @property
    def journal(self) -> bytes:
        return b"".join(p.encode(event) + b"\n" for event in self.events)


def raised(headline: str = "ValueError: bad loss", **changes: Any) -> p.Failure:
    """A failure in line 4 of cell 3, called from cell 4, inside of a library's call."""
    settled: dict[str, Any] = {
        "kind": "raised",
        "headline": headline,
        "type_name": headline.partition(":")[0],
        "frames": (
            p.TracebackFrame(where="Cell In[4]", line=1, function="<module>", source="train()"),
            p.TracebackFrame(where="Cell In[3]", line=4, function="train", source=SOURCE[3].strip()),
            p.TracebackFrame(where="torch.nn.functional", line=3494, function="cross_entropy", source="return x", is_users=False),
        ),
        "excerpt": p.Excerpt(where="Cell In[3]", first=1, lines=SOURCE, failing=4),
        "traceback": 'Traceback (most recent call last):\n  File "/home/someone/model.py", line 4, in train\n',
        "exit_code": 1,
        "at": 1_700_000_000.5,
    }
    return p.Failure(**{**settled, **changes})


def broken_connection() -> p.Failure:
    headline = "RuntimeError: Connection closed by peer [127.0.0.1]"
    return raised(headline, is_communication=True, excerpt=None, frames=())


def killed(headline: str = "killed by SIGKILL (signal 9); the system was out of memory", exit_code: int = -9) -> p.Failure:
    return p.Failure(kind="signal", headline=headline, exit_code=exit_code)


def succeeded(texts: Iterable[str]) -> History:
    """Return a run whose ranks return these values."""
    values = list(texts)
    history = History(len(values)).begin()
    for rank, text in enumerate(values):
        history.returns(rank, text).exits(rank)
    return history.end()
