"""Whoever is killed, nothing of a run stays behind: the agent, the kernel, both, or a rank with all that it has started.

The kernel here is a program of its own, so that it can be killed; what its run has left is found by the run's marker.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from support import Kernel, left_of, python, wait_printed, wait_until

from ice_notebook.host import processes
from ice_notebook.kernel.run import Run
from ice_notebook.runs.store import RunFolder
from ice_notebook.wire.protocol import RunEnded

START_METHOD = "spawn"  # see conftest.py

# A family that is hard to end: children of its own sessions, deaf ones, a daemon, DataLoader workers, and a rank that holds the GIL in C.
FAMILY = """
def family():
    import ctypes, os, subprocess, torch
    from torch.utils.data import DataLoader

    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.Popen(["sleep", "10000"])
    subprocess.Popen(["sleep", "10000"], start_new_session=True)
    subprocess.Popen(["nohup", "sleep", "10000"], **quiet)
    subprocess.run("(setsid nohup sleep 10000 &) ; exit 0", shell=True, **quiet)
    workers = iter(DataLoader(torch.arange(10_000), num_workers=1))
    next(workers)
    print("ready")
    if os.environ["RANK"] == "0":
        ctypes.PyDLL(None).sleep(10_000)  # with the GIL
    while True:
        pass
"""
CHILDREN = 5  # of each rank

KERNEL = f"""
import json, sys
from ice_notebook import ElasticLauncher
{FAMILY}
run = ElasticLauncher("cpu:0-1", dist_init="no", ui="none").start(family)
print(json.dumps({{"marker": run.plan.marker, "folder": str(run.folder)}}), flush=True)
run.wait()
print(json.dumps({{"phase": run.phase, "report": repr(run)}}), flush=True)
"""


class Launched:
    """A run of a kernel that is a program of its own."""

    def __init__(self, program: str = KERNEL, n_children: int = CHILDREN) -> None:
        self.kernel = python(program)
        said = json.loads(self.kernel.stdout.readline())
        self.marker, self.folder = said["marker"], RunFolder(Path(said["folder"]))
        assert wait_until(lambda: all(b"ready" in self.log(rank) for rank in (0, 1)))
        assert len(left_of(self.marker)) == 1 + 2 * (1 + n_children)  # the agent, the ranks and their children

    def log(self, rank: int) -> bytes:
        try:
            return self.folder.output_log(0, rank).read_bytes()
        except FileNotFoundError:
            return b""

    @property
    def agent_pid(self) -> int:
        return self.folder.read_events()[0].agent.pid

    def is_gone(self) -> bool:
        return not left_of(self.marker)

    def wait_gone(self, timeout_s: float) -> None:
        try:
            wait_until(self.is_gone, timeout_s)
        except AssertionError:
            left = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:200] for pid in left_of(self.marker)}
            pytest.fail(
                f"left: {left}\nagent.log: {self.folder.agent_log.read_text()}\nevents: {self.folder.journal_file.read_text()}"
            )

    def close(self) -> None:
        self.kernel.kill()
        self.kernel.communicate()
        processes.sweep(self.marker)


@pytest.fixture
def launched():
    made = Launched()
    yield made
    made.close()


def last_event(folder: RunFolder):
    return folder.read_events()[-1]


def test_nothing_is_left_when_the_agent_is_killed_and_the_kernel_says_so(launched):
    os.kill(launched.agent_pid, signal.SIGKILL)
    said = json.loads(launched.kernel.stdout.readline())
    assert left_of(launched.marker) == []  # at the moment at which the run is over
    assert said["phase"] == "failed"
    assert "the agent ended with signal 9" in said["report"]
    ended = last_event(launched.folder)
    assert isinstance(ended, RunEnded)
    assert ended.swept > 0


def test_nothing_is_left_when_the_kernel_is_killed(launched):
    launched.kernel.kill()
    launched.wait_gone(20)
    ended = last_event(launched.folder)  # written by the agent, its last act
    assert (type(ended), ended.outcome.value, ended.reason) == (RunEnded, "stopped", "kernel gone")


def test_what_a_killed_kernel_and_its_killed_agent_left_is_swept_by_the_next_launch(launched):
    os.kill(launched.kernel.pid, signal.SIGSTOP)  # it must not see to it before it dies
    os.kill(launched.agent_pid, signal.SIGKILL)
    launched.kernel.kill()
    launched.kernel.wait()
    wait_until(lambda: len(left_of(launched.marker)) == 2 * 3)  # of each rank, what has its own session or is deaf to a hang-up
    assert not any(isinstance(event, RunEnded) for event in launched.folder.read_events())

    following = python("from ice_notebook import ElasticLauncher\nprint(ElasticLauncher('cpu', ui='none')(lambda: 7).results[0])")
    output, errors = following.communicate(timeout=60)
    assert output == "7\n", errors
    assert left_of(launched.marker) == []
    ended = last_event(launched.folder)
    assert (type(ended), ended.outcome.value, ended.reason) == (RunEnded, "stopped", "the kernel and the agent were killed")
    assert ended.swept == 2 * 3
    assert Run.open(launched.folder.path).phase == "stopped"


def test_children_that_die_after_their_rank_are_no_news_to_the_agent(start):
    """A fork of a rank, a DataLoader's worker say, holds the rank's connections: the agent may see all of them end in one look."""

    def work():
        import os
        import signal

        child = os.fork()
        if child:
            print("child", child)
        signal.pause()

    run = start(work, n=1, dist_init="no")
    wait_printed(run, "child")
    agent, rank, child = run.state.agent_pid, run.state.ranks[0].pid, int(run.output(0).split()[1])
    os.kill(agent, signal.SIGSTOP)
    for pid in (rank, child):
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    os.kill(agent, signal.SIGCONT)
    assert run.wait(60)
    assert str(run.exception()).startswith("rank 0: killed by SIGKILL")
    assert (run.state.end_reason, RunFolder(run.folder).agent_log.read_text()) == ("", "")


def test_an_agent_that_cannot_go_on_leaves_nothing_although_the_kernel_does_not_see_to_it(tmp_path):
    nonsense = f"""
def family():
    import os, socket, stat, struct, subprocess, time
    subprocess.Popen(["sleep", "10000"], start_new_session=True)
    print("ready")
    while not os.path.exists({str(tmp_path / "now")!r}):
        time.sleep(0.01)
    for fd in os.listdir("/proc/self/fd"):
        if os.path.exists(f"/proc/self/fd/{{fd}}") and stat.S_ISSOCK(os.fstat(int(fd)).st_mode):
            os.write(int(fd), struct.pack("!IQ", 1, 0) + b"x")
    time.sleep(10000)
"""
    launched = Launched(KERNEL.replace(FAMILY, nonsense), n_children=1)
    try:
        os.kill(launched.kernel.pid, signal.SIGSTOP)
        (tmp_path / "now").touch()
        launched.wait_gone(60)
        assert "msgspec.DecodeError" in launched.folder.agent_log.read_text()
    finally:
        launched.close()


@pytest.mark.parametrize("how", ["restart", "shutdown"])
def test_nothing_is_left_when_the_kernel_is_ended_by_the_notebook(how):
    kernel = Kernel()
    try:
        outcome = kernel.run(f"{FAMILY}\nfrom ice_notebook import ElasticLauncher")
        assert not outcome.error, outcome.error
        kernel.run("run = ElasticLauncher('cpu:0-1', dist_init='no', ui='none').start(family)")
        marker = kernel.value("run.plan.marker")
        wait_until(lambda: kernel.value("all('ready' in run.output(rank) for rank in (0, 1))"))
        assert left_of(marker)
        if how == "restart":
            kernel.manager.restart_kernel(now=False)
        else:
            kernel.manager.shutdown_kernel(now=False)
        wait_until(lambda: not left_of(marker), 20)
    finally:
        kernel.close()


def test_the_sweep_of_one_run_leaves_the_children_of_another_alone(start, tmp_path):
    go_on = str(tmp_path / "go on")

    def work():
        import os
        import subprocess
        import time

        child = subprocess.Popen(["sleep", "10000"], start_new_session=True)
        print("ready")
        while not os.path.exists(go_on):
            time.sleep(0.01)
        return child.poll()

    runs = [start(work, n=1, dist_init="no") for _ in range(2)]
    for run in runs:
        wait_printed(run, "ready")
    os.kill(runs[0].state.agent_pid, signal.SIGKILL)  # the kernel sweeps
    assert runs[0].wait(60)
    assert (runs[0].phase, left_of(runs[0].plan.marker)) == ("failed", [])
    Path(go_on).touch()
    assert runs[1].result() is None


def test_exit_codes_are_right_although_orphans_die_meanwhile(launch):
    def work():
        import os
        import subprocess

        # Each becomes a child of the agent, and leaves with another code than the rank.
        for n in range(20):
            subprocess.run(f"(sh -c 'sleep 0.0{n % 10}; exit 99' &) ; exit 0", shell=True, check=True)
        os._exit(10 + int(os.environ["RANK"]))

    run = launch(work, n=3, dist_init="no")
    assert {rank: failure.exit_code for rank, failure in sorted(run.failures.items())} == {0: 10, 1: 11, 2: 12}
    assert [rank.exit_code for rank in run.state.ranks.values()] == [10, 11, 12]


def test_a_child_that_outlives_its_rank_is_swept_at_the_end_of_a_run_that_succeeds(launch):
    def work():
        import subprocess

        child = subprocess.Popen(["sleep", "10000"], start_new_session=True)
        without_marker = subprocess.Popen(["/bin/sh", "-c", "sleep 10000; true"], start_new_session=True, env={})
        return child.pid, without_marker.pid

    run = launch(work, n=1, dist_init="no")
    assert run.phase == "succeeded"
    assert left_of(run.plan.marker) == []
    for pid in run.results[0]:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_killed_rank_leaves_no_semaphores(launch):
    def work():
        import multiprocessing
        import os
        import signal

        queue = multiprocessing.get_context("spawn").Queue()
        locks = (queue._rlock, queue._wlock, queue._sem)
        print("made", *(lock._semlock.name for lock in locks))
        os.kill(os.getpid(), signal.SIGKILL)

    run = launch(work, dist_init="no")
    assert run.phase == "failed"
    lines = [line for rank in range(2) for line in run.output(rank).splitlines()]  # Python's tracker may say something as well
    made = [name for line in lines if line.startswith("made ") for name in line.split()[1:]]
    assert len(made) == 6, run.output(0) + run.output(1)
    assert [name for name in made if os.path.exists(f"/dev/shm/sem.{name.lstrip('/')}")] == []
