"""Ranks that stand by: a launch takes them, whatever happened to them meanwhile, and finds itself in processes that nobody has used."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from support import HANG_S, Kernel, left_of, wait_printed, wait_until

from ice_notebook.host import processes
from ice_notebook.host.inherited import EXPENDABLE
from ice_notebook.kernel.planning import make_preparation
from ice_notebook.kernel.pool import MEMORY_SHARE, RANK_BYTES, Pool, pool
from ice_notebook.kernel.run import Run
from ice_notebook.wire.control import Taken
from ice_notebook.wire.protocol import RankReplaced, RunBegun

START_METHOD = "spawn"  # see conftest.py


def is_ready() -> bool:
    told = pool().describe()
    return "ready" in told and "getting ready" not in told


@pytest.fixture
def standby(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Pool]]:
    """Return `standby(n=2)`, which waits until so many ranks stand by, and for nothing else to be there afterwards.

    The pool is a new one: what launches of other tests have imported is not preloaded. It keeps one set: the machine is for what a test waits for.
    """
    monkeypatch.setattr("ice_notebook.kernel.pool.MOST_SETS", 1)
    pool().stop()
    made = Pool()
    made.default = "auto"
    monkeypatch.setattr("ice_notebook.kernel.pool._pool_of", lambda _pid: made)

    def stand_by(n: int = 2) -> Pool:
        pool().prepare(make_preparation(n))
        wait_until(is_ready)
        return pool()

    yield stand_by
    markers = [each.preparation.marker for each in pool()._sets]
    pool().stop()
    for marker in markers:
        wait_until(lambda marker=marker: not left_of(marker))


def ranks_of(standing: Pool) -> list[int]:
    """Return the processes of the first set, without its agent."""
    marker = standing._sets[0].preparation.marker
    return [pid for pid in left_of(marker) if (processes._carried(pid) or "").rpartition(":")[2].isdigit()]


def who() -> tuple[int, int]:
    import os

    return os.getpid(), int(os.environ["RANK"])


def start_of(run: Run) -> list[str]:
    return [attempt.start for attempt in run.state.attempts]


def test_a_launch_takes_the_ranks_that_stand_by_and_the_next_one_gets_others(launch, standby):
    waiting = set(ranks_of(standby()))
    assert len(waiting) == 2
    first = launch(who)
    assert first.phase == "succeeded", first
    assert start_of(first) == ["standby"]
    assert {pid for pid, _ in first.results.values()} == waiting
    wait_until(is_ready)
    second = launch(who)
    assert start_of(second) == ["standby"]
    assert not {pid for pid, _ in second.results.values()} & waiting, "no rank serves twice"


def test_fewer_or_more_ranks_than_stand_by(launch, standby):
    standby(2)
    alone = launch(who, n=1)
    assert (alone.phase, start_of(alone)) == ("succeeded", ["standby"])
    pool().stop()
    standby(1)
    three = launch(who, n=3)
    assert three.phase == "succeeded"
    assert {rank for _, rank in three.results.values()} == {0, 1, 2}
    assert three.plan.start_note == "1 of 3 ranks stood by"


def test_more_sets_follow_as_far_as_memory_allows(launch, standby, monkeypatch):
    monkeypatch.setattr("ice_notebook.kernel.pool.MOST_SETS", 3)
    monkeypatch.setattr("ice_notebook.host.cores.Leisure.look", lambda _self: 1)
    assert launch(who, start_method="forkserver").phase == "succeeded"
    wait_until(lambda: len(pool()._sets) == 3)
    room = 2 * 3 * RANK_BYTES / MEMORY_SHARE  # for two sets of an agent and two ranks
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=room - 3 * 3 * RANK_BYTES))
    assert pool()._most_sets() == 2


def surroundings() -> dict[str, Any]:
    import os
    import resource

    with open("/proc/self/oom_score_adj") as adjustment:
        return {
            "limit": resource.getrlimit(resource.RLIMIT_NOFILE),
            "nice": sorted({os.getpriority(os.PRIO_PROCESS, int(task)) for task in os.listdir("/proc/self/task")}),
            "cpus": sorted(os.sched_getaffinity(0)),
            "oom_score_adj": int(adjustment.read()),
        }


def test_limits_and_niceness_of_the_launch_reach_ranks_that_stand_by_and_processors_start_cold(launch, standby):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    cpus, nice = os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0)
    with open("/proc/self/oom_score_adj") as adjustment:
        own = int(adjustment.read())
    standby(1)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(900, soft), hard))
        os.setpriority(os.PRIO_PROCESS, 0, nice + 3)
        run = launch(surroundings, n=1, dist_init="no")
        assert run.phase == "succeeded", run
        assert start_of(run) == ["standby"]
        found = run.results[0]
        assert found["limit"] == (min(900, soft), hard)
        assert found["nice"] == [nice + 3], "of all threads"
        assert found["oom_score_adj"] == min(1000, own + EXPENDABLE)
        wait_until(is_ready)
        os.sched_setaffinity(0, {min(cpus)})
        run = launch(surroundings, n=1, dist_init="no")
        assert run.phase == "succeeded", run
        assert run.plan.start_note == "the processors that it may use changed"
        assert run.results[0]["cpus"] == [min(cpus)]
        assert run.results[0]["limit"] == (min(900, soft), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.sched_setaffinity(0, cpus)
        if os.geteuid() == 0:
            os.setpriority(os.PRIO_PROCESS, 0, nice)


# ---- dead, deaf, stopped -------------------------------------------------------------------------------------------------------------------


def test_dead_standby_ranks_are_replaced_before_anybody_notices(launch, standby):
    standing = standby()
    dead = ranks_of(standing)
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    run = launch(who)
    assert run.phase == "succeeded", run
    assert not {pid for pid, _ in run.results.values()} & set(dead)


def test_those_that_die_while_nobody_needs_them_are_started_anew(standby):
    standing = standby()
    dead = ranks_of(standing)
    os.kill(dead[0], signal.SIGKILL)
    wait_until(lambda: len(ranks_of(standing)) == 2 and dead[0] not in ranks_of(standing))


def test_a_deaf_standby_rank_is_replaced_and_has_not_begun(launch, standby):
    deaf = ranks_of(standby())[0]
    os.kill(deaf, signal.SIGSTOP)
    run = launch(who)
    assert run.phase == "succeeded", run
    assert deaf not in {pid for pid, _ in run.results.values()}
    (replaced,) = [event for event in run._folder.read_events() if isinstance(event, RankReplaced)]
    assert run.state.ranks[replaced.rank].pid == replaced.pid == run.results[replaced.rank][0]


def test_no_function_begins_while_a_rank_is_replaced(launch, standby):
    def begin() -> float:
        import time

        return time.time()

    os.kill(ranks_of(standby())[1], signal.SIGSTOP)
    run = launch(begin, dist_init=False)
    (replaced,) = [event for event in run._folder.read_events() if isinstance(event, RankReplaced)]
    assert min(run.results.values()) > replaced.at, "the other rank is ready long before, and waits"


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
def test_an_agent_that_does_not_answer_is_replaced_with_all_that_it_had(launch, standby, number):
    chosen = standby(1)._sets[0]
    marker = chosen.preparation.marker
    agents = [pid for pid in left_of(marker) if (processes._carried(pid) or "").endswith(":agent")]
    for pid in agents:
        os.kill(pid, number)
    run = launch(who, n=1)
    assert run.phase == "succeeded", run
    assert run.plan.marker != marker
    wait_until(lambda: not left_of(marker))


def test_an_agent_that_takes_a_run_too_late_has_not_begun_it(launch, standby, tmp_path, monkeypatch):
    """It is given up by the kernel while it makes everything ready: the user's code runs once a rank, in those that came in its place."""

    def work() -> None:
        import os

        with open(tmp_path / "begun", "a") as file:
            file.write(os.environ["RANK"])

    chosen = standby(1)._sets[0].agent.channel
    receive_until = chosen.receive_until

    def too_late(_until: float) -> None:
        said = []
        while (message := receive_until(time.monotonic() + 2)) is not None:
            said.append(message)
        assert Taken() in said
        assert not (tmp_path / "begun").exists(), said

    with monkeypatch.context() as slow:
        slow.setattr(chosen, "receive_until", too_late)
        run = launch(work, n=1, dist_init="no")
    assert run.phase == "succeeded", run
    assert (tmp_path / "begun").read_text() == "0"
    assert sum(isinstance(event, RunBegun) for event in run._folder.read_events()) == 1


# ---- what they find ------------------------------------------------------------------------------------------------------------------------


def test_code_on_disk_is_read_when_the_run_begins(launch, standby, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "edited_by_the_user.py"

    def version() -> int:
        import edited_by_the_user

        return edited_by_the_user.VERSION

    standby(1)
    for number in (1, 2):
        module.write_text(f"VERSION = {number}\n")
        os.utime(module, (number, number))  # an edit within the same second has another time as well
        run = launch(version, n=1)
        assert dict(run.results) == {0: number}, run
        wait_until(is_ready)


def test_the_notebooks_environment_folder_and_module_path_are_those_of_now(launch, standby, tmp_path, monkeypatch):
    monkeypatch.setenv("OF_BEFORE", "1")
    standby(1)
    monkeypatch.delenv("OF_BEFORE")
    monkeypatch.setenv("OF_NOW", "ü")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "lib")

    def found() -> Any:
        import os
        import sys

        return os.environ.get("OF_BEFORE"), os.environ["OF_NOW"], os.getcwd(), sys.path[0]

    run = launch(found, n=1)
    assert start_of(run) == ["standby"], run.plan.start_note
    assert run.results[0] == (None, "ü", str(tmp_path), str(tmp_path / "lib"))


def test_what_is_read_when_a_process_starts_makes_a_cold_start_which_says_so(launch, standby):
    def hashed() -> int:
        return hash("a text")

    standby(1)
    run = launch(hashed, n=1, env={"PYTHONHASHSEED": "7"})
    assert start_of(run) == ["cold"]
    assert run.plan.start_note == "PYTHONHASHSEED changed"
    import subprocess

    seven = subprocess.check_output([sys.executable, "-c", "print(hash('a text'))"], env={**os.environ, "PYTHONHASHSEED": "7"})
    assert dict(run.results) == {0: int(seven)}


def test_what_torch_has_functions_for_is_told_to_it(launch, standby):
    def settings() -> Any:
        import torch
        import torch.distributed as dist

        return torch.get_num_threads(), dist.get_debug_level().name

    standby(1)
    run = launch(settings, n=1, omp_num_threads=3, env={"TORCH_DISTRIBUTED_DEBUG": "DETAIL"})
    assert start_of(run) == ["standby"], run.plan.start_note
    assert run.results[0] == (3, "DETAIL")


def test_another_torch_on_the_module_path_makes_a_cold_start(launch, standby, tmp_path, monkeypatch):
    monkeypatch.setattr("ice_notebook.host.boot.pinned", lambda _path: {})  # as where numpy is not loaded
    standby(1)
    (tmp_path / "numpy.py").write_text("raise ImportError('not a numpy')")
    monkeypatch.syspath_prepend(tmp_path)
    run = launch(who, n=1, dist_init="no")
    assert run.plan.start_note == "sys.path finds another numpy"


def test_a_slow_name_service_is_not_asked(launch, tmp_path, monkeypatch):
    """A launch asks for this machine's name nowhere: each answer would take longer than all of it."""
    pool().stop()
    asked = tmp_path / "asked"
    (tmp_path / "sitecustomize.py").write_text(
        f"import socket\n"
        f"def slow(*_):\n"
        f"    open({str(asked)!r}, 'a').write('!')\n"
        f"    return 'nobody'\n"
        f"socket.getfqdn = socket.gethostbyaddr = slow\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = launch(who, n=1)
    assert run.phase == "succeeded", run
    assert not asked.exists()


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A module `takes_its_time`, whose import notes in `begun` that it begins, and lasts until there is a `gate`; and how many cores are `idle`."""
    made = SimpleNamespace(begun=tmp_path / "begun", gate=tmp_path / "gate", idle=1)
    made.begun.touch()
    (tmp_path / "takes_its_time.py").write_text(
        f"import os, time\nwith open({str(made.begun)!r}, 'a') as file:\n    file.write('+')\n"
        f"while not os.path.exists({str(made.gate)!r}):\n    time.sleep(0.01)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("ice_notebook.host.cores.Leisure.look", lambda _self: made.idle)
    return made


def wait_for_ever() -> None:
    import time

    while True:
        time.sleep(0.01)


def is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def test_beside_a_run_as_many_get_ready_at_a_time_as_cores_are_idle_and_after_it_all(start, standby, slow):
    standing = standby()
    run = start(wait_for_ever, preload="takes_its_time")
    wait_until(slow.begun.read_text)
    assert len(ranks_of(standing)) == 2
    assert slow.begun.read_text() == "+"
    run.kill()
    wait_until(lambda: slow.begun.read_text() == "++")
    slow.gate.touch()
    wait_until(is_ready)


@pytest.mark.parametrize("then", ["leisure", "the end of the run", "the end of its agent"])
def test_what_gets_ready_rests_while_a_launch_may_need_the_cores(start, standby, slow, monkeypatch, then):
    monkeypatch.setattr("ice_notebook.kernel.pool.MOST_SETS", 2)
    n = 2 if then == "leisure" else 1
    standing = standby(n)
    wait_until(lambda: len(standing._sets) == 2)
    runs = [start(wait_for_ever, n=n, preload="takes_its_time")]
    wait_until(slow.begun.read_text)  # one set is ready, and a rank of another imports more
    slow.idle = 0
    runs.append(start(wait_for_ever, n=n, preload="takes_its_time"))
    assert wait_until(lambda: start_of(runs[1])) == ["standby"]
    [rank] = wait_until(lambda: [each for each in ranks_of(standing) if is_stopped(each)])
    if then == "leisure":
        slow.idle = 1
        wait_until(lambda: not is_stopped(rank))
        assert slow.begun.read_text() == "+"
        cold = start(who, n=n)
        assert cold.wait(HANG_S)
        assert cold.plan.start_note == "what stands by was importing takes_its_time"  # and it was not waited for
        slow.gate.touch()
        wait_until(lambda: any(each.is_idle and each.readiness.preloaded for each in standing._sets))
        last = start(who, n=n)
        assert last.wait(HANG_S)
        assert rank in {pid for pid, _ in last.results.values()}, last
    elif then == "the end of the run":
        for run in runs:
            run.kill()
        wait_until(lambda: not is_stopped(rank))
        slow.gate.touch()
        wait_until(is_ready)
    else:
        standing._sets[0].agent.kill()
        wait_until(lambda: not psutil.pid_exists(rank))


# ---- preloading ----------------------------------------------------------------------------------------------------------------------------


def loaded(name: str) -> bool:
    import sys

    return name in sys.modules


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_ranks_have_imported_the_next_ones_have_already(launch, standby, method):
    def work() -> str:
        import sympy

        return sympy.__name__

    standby(1)
    assert launch(work, n=1, start_method=method).phase == "succeeded"
    wait_until(lambda: is_ready() and "sympy" in pool().describe())
    known = set(os.environ)
    assert all("PYTORCH_JIT" in each.readiness.environment for each in pool()._sets), "which torch looks for"
    assert not any({"XDG_CACHE_HOME", "ICE_NOTEBOOK_STANDBY"} & known & set(each.readiness.environment) for each in pool()._sets)
    run = launch(loaded, "sympy", n=1, start_method=method)
    assert dict(run.results) == {0: True}
    assert run.plan.preloaded["sympy"] > 0
    wait_until(is_ready)
    assert launch(work, n=1, preload="no", start_method=method).phase == "succeeded"


def test_a_module_that_does_harm_is_not_preloaded_again(launch, standby, tmp_path, monkeypatch):
    (tmp_path / "setting.py").write_text("import os; os.environ['SET_BY_AN_IMPORT'] = '1'")
    (tmp_path / "failing.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)

    def found() -> Any:
        import os
        import sys

        return os.environ.get("SET_BY_AN_IMPORT"), sys.modules.get("setting")

    standby(1)
    launch(found, n=1, preload="failing,setting")
    wait_until(lambda: len(pool()._refused) == 2)
    assert "sets SET_BY_AN_IMPORT" in pool()._refused["setting"]
    assert "ModuleNotFoundError" in pool()._refused["failing"]
    wait_until(is_ready)
    run = launch(found, n=1, preload="failing,setting")
    assert start_of(run) == ["standby"]
    assert run.results[0] == (None, None)


# ---- the fork server -----------------------------------------------------------------------------------------------------------------------


def test_forked_ranks_are_processes_of_their_own(launch, standby):
    def work() -> Any:
        import os
        import random
        import sys

        import numpy as np
        import torch

        print("a line", flush=True)
        print("another", file=sys.stderr)
        drawn = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002 - the old generator is the one that everybody shares
        return os.getpid(), os.getsid(0), os.isatty(1), os.environ["RANK"], drawn

    run = launch(work, start_method="forkserver", n=3)
    assert run.phase == "succeeded", run
    values = list(run.results.values())
    assert start_of(run) == ["forked"]
    assert len({pid for pid, *_ in values}) == 3
    assert all(pid == session and terminal for pid, session, terminal, *_ in values)
    assert [rank for *_, rank, _ in values] == ["0", "1", "2"]
    for kind in range(3):
        assert len({drawn[kind] for *_, drawn in values}) == 3, "each rank draws numbers of its own"
    assert all(run.output(rank).splitlines() == ["a line", "another"] for rank in range(3))
    again = launch(work, start_method="forkserver", n=3)
    assert {drawn for *_, drawn in again.results.values()}.isdisjoint(drawn for *_, drawn in values)


def test_forked_ranks_fail_stop_and_restart_like_others(launch, start, standby):
    def work() -> int:
        import os
        import signal
        import subprocess

        subprocess.Popen(["sleep", "10000"], start_new_session=True)
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        print("at work")
        while True:
            signal.pause()

    run = start(work, start_method="forkserver", max_restarts=1)
    wait_printed(run, "at work", attempt=1)
    first = run.state.attempts[0]
    assert (first.root, first.ranks[1].exit_code) == (1, -signal.SIGKILL)
    run.stop()
    assert run.wait(HANG_S)
    assert run.phase == "stopped"
    assert left_of(run.plan.marker) == []


A_THREAD = "import threading, time\nthreading.Thread(target=time.sleep, args=[10000], daemon=True).start()\n"


def test_a_fork_server_with_a_thread_is_not_used(launch, standby, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(A_THREAD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = launch(who, n=1, start_method="forkserver")
    assert run.phase == "succeeded", run
    assert run.state.start_note.startswith("fork server not used: a thread runs in it")
    assert start_of(run) == ["cold"]


def test_a_package_that_leaves_a_thread_is_not_preloaded_and_forking_goes_on(launch, standby, tmp_path, monkeypatch):
    (tmp_path / "with_a_thread.py").write_text(A_THREAD)
    monkeypatch.syspath_prepend(tmp_path)
    assert start_of(launch(who, n=1, start_method="forkserver", preload="with_a_thread")) == ["forked"]
    wait_until(lambda: pool()._refused)
    assert pool()._refused["with_a_thread"].startswith("a thread runs in it")
    assert pool()._server is not None
    assert pool()._server.is_forking


def server_pid() -> int:
    """Return the process of the fork server."""
    server = pool()._server
    assert server is not None
    return server._process._process.pid


@pytest.fixture
def stopped_server(launch, standby) -> None:
    """Have a fork server that nothing waits for, and that does not answer."""
    launch(who, n=1, start_method="forkserver", preload="no")  # no other server follows
    wait_until(is_ready)  # nor is a set to be forked, which would find out
    os.kill(server_pid(), signal.SIGSTOP)


def test_what_waits_for_a_fork_server_that_does_not_answer_can_be_stopped(start, stopped_server):
    run = start(who, n=1, start_method="forkserver", standby="off")
    run.stop()
    assert run.wait(HANG_S)
    assert (run.phase, left_of(run.plan.marker)) == ("stopped", [])


def test_a_fork_server_that_does_not_answer_is_replaced(launch, stopped_server, monkeypatch):
    monkeypatch.setattr("ice_notebook.kernel.agents.FORK_WAIT_S", 0.2)
    run = launch(who, n=1, start_method="forkserver", standby="off")
    assert (run.phase, start_of(run)) == ("succeeded", ["cold"])
    assert run.state.start_note == "fork server not used: it did not answer"


def test_a_rank_server_that_was_killed_costs_no_launch(launch, standby):
    launch(who, n=1, start_method="forkserver")
    wait_until(is_ready)
    marker = pool()._sets[0].preparation.marker
    [rank_server] = [pid for pid in left_of(marker) if processes._carried(pid) == f"{marker}:server"]
    os.kill(rank_server, signal.SIGKILL)
    run = launch(who, n=3, start_method="forkserver")
    assert (run.phase, run.plan.marker) == ("succeeded", marker)
    assert {rank for _, rank in run.results.values()} == {0, 1, 2}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_fork_server_that_dies_takes_no_run_along(start, launch, standby, number):
    def work() -> None:
        import time

        print("at work")
        time.sleep(10_000)

    run = start(work, start_method="forkserver")
    wait_printed(run, "at work")
    os.kill(server_pid(), number)
    wait_until(lambda: pool()._server is None or pool()._server.has_ended())
    assert launch(who, start_method="forkserver").phase == "succeeded"
    assert run.phase == "running"
    run.stop()
    assert run.wait(HANG_S)
    assert run.phase == "stopped"


def test_an_agent_that_the_fork_server_has_yet_to_fork_is_waited_for(start, launch, standby, monkeypatch):
    """The server imports what ranks have imported, say: nothing is wrong with what waits for it."""
    launch(who, start_method="forkserver")
    wait_until(is_ready)
    server = server_pid()
    os.kill(server, signal.SIGSTOP)
    try:
        assert launch(who, start_method="forkserver").phase == "succeeded"
        wait_until(lambda: len(pool()._sets) == 1)
        waiting = pool()._sets[0]
        run = start(who, start_method="forkserver")
    finally:
        os.kill(server, signal.SIGCONT)
    assert run.wait(HANG_S)
    assert (run.phase, run.plan.marker) == ("succeeded", waiting.preparation.marker)


# ---- restarts ------------------------------------------------------------------------------------------------------------------------------


def wait_at_rest(pids: set[int]) -> None:
    """Wait until processes have imported torch, and do nothing any more."""
    wait_until(lambda: all(processes.cpu_time(pid) > 0.5 for pid in pids))
    settled = [0.0] * len(pids)

    def at_rest() -> bool:
        nonlocal settled
        before, settled = settled, [processes.cpu_time(pid) for pid in pids]
        time.sleep(0.3)
        # One that waits for a processor of a busy machine does nothing either: it is not asleep.
        return before == settled and all(psutil.Process(pid).status() == psutil.STATUS_SLEEPING for pid in pids)

    wait_until(at_rest)


def fail_once(flag: str = "") -> int:
    """Return who this is, in the second attempt; the first fails, when there is the file if one is named."""
    import os
    import time

    print("at work")
    while os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        if not flag or os.path.exists(flag):
            raise ValueError("now")
        time.sleep(0.01)
    return os.getpid()


def test_a_restart_takes_spares_that_are_up(start, tmp_path):
    flag = tmp_path / "fail"
    run = start(fail_once, str(flag), max_restarts=1)
    wait_printed(run, "at work")
    wait_until(lambda: len(left_of(run.plan.marker)) == 5)  # agent, two ranks, two spares
    spares = set(left_of(run.plan.marker)) - {rank.pid for rank in run.state.ranks.values()} - {run.state.agent_pid}
    wait_at_rest(spares)
    flag.touch()
    assert run.wait(HANG_S)
    assert run.phase == "succeeded", run
    assert start_of(run)[1] == "standby"
    assert set(run.results.values()) == spares


def test_a_run_that_fails_at_once_finds_spares_that_stood_by(launch, standby, monkeypatch):
    monkeypatch.setattr("ice_notebook.host.cores.Leisure.look", lambda _self: 1)
    standing = standby(1)
    launch(who, n=1, max_restarts=1)
    wait_until(lambda: standing._sets and len(ranks_of(standing)) == 2)
    waiting = set(ranks_of(standing))
    wait_at_rest(waiting)
    assert is_ready()
    run = launch(fail_once, n=1, max_restarts=1)
    assert run.phase == "succeeded", run
    assert start_of(run) == ["standby", "standby"]
    assert set(run.results.values()) < waiting
    wait_until(lambda: not left_of(run.plan.marker))


# ---- when they end -------------------------------------------------------------------------------------------------------------------------

CELL = "%%elastic_launch devices=cpu:0 ui=none dist_init=no{}\ndef f():\n    return 1"
MARKERS = "[each.preparation.marker for each in __import__('ice_notebook.kernel.pool').kernel.pool.pool()._sets]"


def standing_by(kernel: Kernel) -> list[str]:
    """Launch, and return the markers of what stands by afterwards."""
    outcome = kernel.run(CELL.format(""))
    assert not outcome.error, outcome.error
    markers: list[str] = wait_until(lambda: kernel.value(MARKERS))
    wait_until(lambda: all(len(left_of(marker)) == 2 for marker in markers))
    return markers


def end_by_exit(kernel: Kernel) -> None:
    kernel.start("exit()")


def end_by_kill(kernel: Kernel) -> None:
    os.kill(kernel.pid, signal.SIGKILL)


def end_by_restart(kernel: Kernel) -> None:
    kernel.manager.restart_kernel(now=False)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """A fresh kernel as a user has it."""
    monkeypatch.delenv("ICE_NOTEBOOK_STANDBY")
    made = Kernel()
    yield made
    made.close()


@pytest.mark.parametrize("end", [end_by_exit, end_by_kill, end_by_restart])
def test_nothing_stands_by_longer_than_its_kernel(kernel, end):
    markers = standing_by(kernel)
    end(kernel)
    for marker in markers:
        wait_until(lambda marker=marker: not left_of(marker))


# Whatever else this machine does, and with one set.
AT_LEISURE = "from ice_notebook.host import cores; from ice_notebook.kernel import pool\ncores.Leisure.look = lambda _: 1\npool.MOST_SETS = 1"
SERVERS = """(lambda server: [server.preparation.marker] if server is not None and server.is_forking else [])(
    __import__('ice_notebook.kernel.pool').kernel.pool.pool()._server
)"""


def test_helpers_that_are_stopped_end_with_their_kernel(kernel):
    kernel.run(AT_LEISURE)
    markers = standing_by(kernel) + wait_until(lambda: kernel.value(SERVERS))  # up, and holding on to their lifeline
    pids = [pid for marker in markers for pid in wait_until(lambda marker=marker: left_of(marker))]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    os.kill(kernel.pid, signal.SIGKILL)
    for marker in markers:
        wait_until(lambda marker=marker: not left_of(marker))


def test_a_kernel_does_not_take_what_stands_by_for_another(kernel, standby):
    waiting = left_of(standby(1)._sets[0].preparation.marker)
    outcome = kernel.run(CELL.format(" -o run") + "\n")
    assert not outcome.error, outcome.error
    assert kernel.value("run.state.attempts[0].start") == "cold"
    assert left_of(pool()._sets[0].preparation.marker) == waiting


def test_off_leaves_nothing_and_the_magic_says_what_stands_by(kernel):
    markers = standing_by(kernel)
    assert "by: " in kernel.run("%elastic_standby").text
    assert not kernel.run(CELL.format(" standby=off")).error
    for marker in markers:
        wait_until(lambda marker=marker: not left_of(marker))
    assert kernel.run("%elastic_standby").text.strip() == "No ranks stand by."
    assert re.match(r"(No ranks stand by yet|1 rank stands by: )", kernel.run("%elastic_standby 1").text), (
        "the thread may be as quick as we are"
    )
    (marker,) = wait_until(lambda: kernel.value(MARKERS))
    assert kernel.run("%elastic_standby off").text.strip() == "No ranks stand by."
    wait_until(lambda: not left_of(marker))
    assert not kernel.run(CELL.format("")).error
    assert kernel.value(MARKERS) == [], "what the notebook has switched off stays off"
    assert "expected a whole number" in kernel.run("%elastic_standby many").error_value


def test_they_end_after_an_idle_time(launch, standby, monkeypatch):
    marker = standby(1)._sets[0].preparation.marker
    monkeypatch.setattr("ice_notebook.kernel.pool.IDLE_S", 0.01)
    pool()._wake()
    wait_until(lambda: not left_of(marker))
    assert pool().describe() == "No ranks stand by."


def test_a_machine_that_has_no_room_for_more_processes_goes_without(launch, standby, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    standing = standby(1)
    run = launch(who, n=1)
    assert start_of(run) == ["standby"]
    standing.stop()
    with monkeypatch.context() as full:
        full.setattr("ice_notebook.host.starting.start_process", refuse)
        standing.prepare(make_preparation(1))
        wait_until(lambda: not standing.is_on and standing._thread is None)
    assert launch(who, n=1).phase == "succeeded"
