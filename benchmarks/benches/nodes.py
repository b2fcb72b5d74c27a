"""Two nodes on one machine: when does a second one take part, and when do the ranks go on after it was lost?"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import family
from benchmarks.bench import OURS, Bench, Facts, Row

_LIMIT_S = 180.0  # torch misses a lost node for a while
_WORK = """
import time, torch, torch.distributed as dist
if not dist.is_initialized():
    dist.init_process_group("gloo")
print("world", dist.get_world_size(), flush=True)
while True:
    dist.all_reduce(torch.ones(1))
    time.sleep(0.02)
"""
_CELL = "def train():\n" + "".join(f"    {line}\n" for line in _WORK.strip().splitlines())
_NOTEBOOK = f"""
{_CELL}
from ice_notebook import ElasticLauncher
ElasticLauncher("cpu:0", nnodes="1:2", max_restarts=3, ui="text")(train)
"""
_JOIN = re.compile(r"(ICE_NOTEBOOK_TOKEN)=(\S+) python (-m ice_notebook join \S+)")
_MEETING = "--nproc-per-node 1 --nnodes 1:2 --max-restarts 3 --rdzv-backend c10d --rdzv-id bench --rdzv-conf last_call_timeout=1"


@dataclass(frozen=True)
class Way:
    """How nodes are started. `words` launch the same on each by hand; without, the first is a program, and the second joins it."""

    name: str
    title: str
    words: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


WAYS = (
    Way(OURS, "ice_notebook join"),
    Way("by_hand", "ice_notebook launch (c10d)", ("-m", "ice_notebook", "launch")),
    # With the store that it shares over all rounds, ranks of the second round did not meet within three minutes.
    Way("torchrun", "torchrun (c10d)", ("-m", "torch.distributed.run"), (("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1"),)),
)


def _measure(way: Way, scratch: Path) -> Facts:
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    by_hand = _words_by_hand(way, scratch) if way.words else []
    try:
        with _Node(by_hand or ["-c", _NOTEBOOK], first, dict(way.environment)) as node:
            node.wait_for("world 1")
            words, environment = (by_hand, dict(way.environment)) if way.words else node.join_command()
            began = time.perf_counter()
            with _Node(words, second, environment):
                joined_s = node.wait_for("world 2") - began
                began = time.perf_counter()
                family.end(second)  # all of it, as when a machine loses its power
                lost_s = node.wait_for("world 1") - began
    finally:
        family.end(second)
        family.end(first)
    return {"joined": [joined_s], "lost": [lost_s]}


def _words_by_hand(way: Way, scratch: Path) -> list[str]:
    script = scratch / "nodes_work.py"
    script.write_text(_WORK)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    return [*way.words, *_MEETING.split(), "--rdzv-endpoint", f"127.0.0.1:{port}", str(script)]


class _Node:
    """A program that is a node of a run, and what it prints."""

    def __init__(self, words: list[str], marker: str, environment: dict[str, str]) -> None:
        own = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        self._process = subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**own, **environment, family.MARKER: marker},
            start_new_session=True,
        )
        self._said: list[tuple[float, str]] = []
        self._heard = 0
        self._news = threading.Condition()
        self._is_over = False
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> _Node:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def wait_for(self, text: str) -> float:
        """Return when a line with a text has come, behind the one that was last waited for."""
        for at, line in self._lines():
            if text in line:
                return at
        raise RuntimeError(f"a node has not printed {text!r} within {_LIMIT_S:g} s")

    def join_command(self) -> tuple[list[str], dict[str, str]]:
        """Return the words and the variable with which another node joins, as the run has printed them."""
        found = _JOIN.search("\n".join(line for _, line in self._said))
        if found is None:
            raise RuntimeError("the first node has not said how to join")
        return found[3].split(), {found[1]: found[2]}

    def _lines(self) -> Iterator[tuple[float, str]]:
        deadline = time.perf_counter() + _LIMIT_S
        while True:
            with self._news:
                self._news.wait_for(
                    lambda: self._is_over or len(self._said) > self._heard, max(0.0, deadline - time.perf_counter())
                )
                if len(self._said) == self._heard:
                    return
                self._heard += 1
                found = self._said[self._heard - 1]
            yield found

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed
            for line in self._process.stdout:
                with self._news:
                    self._said.append((time.perf_counter(), line))
                    self._news.notify_all()
        with self._news:
            self._is_over = True
            self._news.notify_all()


BENCH = Bench(
    "nodes",
    "Two nodes",
    "A rank each on two nodes, which are programs of this machine and meet on the loopback address, nnodes=1:2. Both ranks add up a number every "
    "20 ms. With torch's rendezvous (c10d) last_call_timeout is 1 s instead of 30; the rest is as by default, 15 s until a silent node is given up "
    "among it; torchrun runs with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, without which its ranks did not meet again. A node is lost by SIGKILL to all of its processes at once.",
    (
        Row("joined", "from the second node's start to a first line of both"),
        Row("lost", "from the loss of the second node to the first line of the next round"),
    ),
    _measure,
    WAYS,
)
