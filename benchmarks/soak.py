"""`python -m benchmarks.soak [--launches 1000] [--start-method forkserver]`: launch after launch in one process, and what they leave behind.

Two CPU ranks make a gloo group, meet at a barrier and return. The exit status is 1 when a launch hangs, fails or gives wrong values, or when
processes, descriptors, threads or files on shared memory are left.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from ice_notebook import ElasticLauncher

N_RANKS = 2
HANG_S = 60.0  # a launch that takes longer hangs: a cold one takes seconds
_REPORT_EVERY = 100
_SETTLED_AFTER = 10  # launches: by then whatever a process keeps for good, as the fork server and its sets, has been there once
_SLACK = 8  # descriptors and threads more or less, as sets that stand by come and go
_END_WAIT_S = 20.0


@dataclass(frozen=True)
class Held:
    """What this process has, and what runs have left. `marked` and `shared` must be 0."""

    fds: int
    threads: int
    marked: int  # processes of runs that are over
    shared: int  # folders of runs that are over, on shared memory

    def excess(self, settled: Held) -> str:
        """Return what is more than it may be, in words; empty when nothing is."""
        more = {
            f"{self.marked} processes of ended runs": self.marked > 0,
            f"{self.shared} folders on shared memory": self.shared > 0,
            f"{self.fds} descriptors, {settled.fds} before": self.fds > settled.fds + _SLACK,
            f"{self.threads} threads, {settled.threads} before": self.threads > settled.threads + _SLACK,
        }
        return ", ".join(text for text, is_so in more.items() if is_so)

    def __str__(self) -> str:
        return f"{self.fds} descriptors, {self.threads} threads, {self.marked} processes and {self.shared} folders of ended runs"


@dataclass
class Soak:
    """Launches so far."""

    taken_s: list[float] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)  # how many launches found their ranks ready, forked or cold
    faults: list[str] = field(default_factory=list)
    run_ids: list[str] = field(default_factory=list)
    markers: list[str] = field(default_factory=list)

    def launch(self, launcher: ElasticLauncher) -> bool:
        """Launch once, note how that went, and return whether to go on: not after one that hangs."""
        number = len(self.taken_s) + 1
        began = time.perf_counter()
        run = launcher.start(meet)
        is_over = run.wait(HANG_S)
        self.taken_s.append(time.perf_counter() - began)
        self.run_ids.append(run.id)
        self.markers.append(run.plan.marker)
        if not is_over:
            self.faults.append(f"launch {number} hangs: {run.phase.value} after {HANG_S:g} s, in {run.folder}")
            run.kill()
            run.wait(HANG_S)
            return False
        for attempt in run.state.attempts:
            self.starts[attempt.start] = self.starts.get(attempt.start, 0) + 1
        if run.phase != "succeeded" or dict(run.results) != dict.fromkeys(range(N_RANKS), N_RANKS):
            self.faults.append(f"launch {number} is not as it should be:\n{run!r}")
        return True

    def held(self) -> Held:
        """Return what is held now."""
        from ice_notebook.host import processes
        from ice_notebook.runs import store

        _join_threads_of_runs()
        gc.collect()  # a run that nobody holds gives back what it has when it is collected
        places = [store.SHARED_MEMORY / f"{store._SHARED_PREFIX}{run_id}" for run_id in self.run_ids]
        return Held(
            fds=len(os.listdir("/proc/self/fd")),
            threads=threading.active_count(),
            marked=len(processes.find_marked(*self.markers)),
            shared=sum(place.exists() for place in places),
        )

    def describe(self) -> str:
        """Return how launches went, in one line."""
        ordered = sorted(self.taken_s)
        p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        starts = ", ".join(f"{count} {start}" for start, count in sorted(self.starts.items()))
        return (
            f"{len(ordered)} launches ({starts}): median {statistics.median(ordered):.3f} s, "
            f"99 of 100 within {p99:.3f} s, at most {ordered[-1]:.3f} s; {len(self.faults)} faults"
        )


def _join_threads_of_runs() -> None:
    """Wait for threads that follow runs: each holds its run a moment longer than whoever waits for it."""
    for thread in threading.enumerate():
        if thread.name.startswith("ice-run-"):
            thread.join(_END_WAIT_S)


def meet() -> int:
    """Meet the other ranks, and return how many there are. Runs in the ranks."""
    import torch.distributed as dist

    dist.barrier()
    return dist.get_world_size()


def main(arguments: Sequence[str]) -> int:
    """Launch, report and return the exit status."""
    asked = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ice-soak-", ignore_cleanup_errors=True) as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # the user's runs are not touched
        return _soak(asked)


def _soak(asked: argparse.Namespace) -> int:
    from ice_notebook import ElasticLauncher
    from ice_notebook.kernel.pool import pool

    launcher = ElasticLauncher(f"cpu:0-{N_RANKS - 1}", start_method=asked.start_method, ui="none").freeze()
    soak = Soak()
    settled: Held | None = None
    before = soak.held()
    for number in range(1, asked.launches + 1):
        goes_on = soak.launch(launcher)
        if settled is None and number >= min(_SETTLED_AFTER, asked.launches // 2):
            settled = soak.held()
        if number % _REPORT_EVERY == 0 or number == asked.launches or not goes_on:
            held = soak.held()
            excess = held.excess(settled or before)
            soak.faults += [f"after {number} launches: {excess}"] if excess else []
            print(f"{soak.describe()}; {held}", flush=True)
        if not goes_on:
            break
    pool().stop()
    soak.faults += _left_over(soak)
    for fault in soak.faults:
        print(fault, file=sys.stderr)
    return 1 if soak.faults else 0


def _left_over(soak: Soak) -> list[str]:
    """Return what is still there when nothing stands by any more."""
    from ice_notebook.kernel.pool import pool

    children = psutil.Process().children(recursive=True)
    _, alive = psutil.wait_procs(children, _END_WAIT_S)
    left = [f"left at the end: process {child.pid}" for child in alive]
    held = soak.held()
    if held.marked or held.shared:
        left.append(f"left at the end: {held}")
    if pool().is_on:
        left.append("left at the end: the pool still wants ranks to stand by")
    return left


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--launches", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--start-method", default="forkserver", choices=("forkserver", "spawn"), help="default forkserver")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
