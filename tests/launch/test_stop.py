"""Stopping a run: ranks are asked, terminated, killed, in this order; nothing is left, and nobody else is touched.

The last tests do it as people do, by the notebook's interrupt.
"""

from __future__ import annotations

import os
import signal
import threading

import pytest
from support import left_of, wait_printed, wait_until

from ice_notebook import ElasticLauncher, RunFailed
from ice_notebook.host import processes

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
END_S = 60.0


def exit_codes(run) -> list[int]:
    return [rank.exit_code for rank in run.state.ranks.values()]


def reasons(run) -> list[str]:
    """Return why the run was stopped and why it ended, as the journal has it."""
    return [event.reason for event in run._folder.read_events() if type(event).__name__ in {"StopAsked", "RunEnded"}]


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_a_stopped_rank_cleans_up_and_one_blocked_in_native_code_is_terminated(start, start_method):
    def work():
        import os
        import sys
        import threading
        import time

        import torch
        import torch.distributed as dist

        def say_when_it_waits():
            main = threading.main_thread().ident
            seen, since = None, time.monotonic()
            while seen is None or time.monotonic() < since + 0.3:
                frame = sys._current_frames()[main]
                if (now := (frame.f_code, frame.f_lasti)) != seen or frame.f_code.co_name != "all_reduce":
                    seen, since = now, time.monotonic()
                time.sleep(0.001)
            print("ready")

        try:
            if os.environ["RANK"] == "0":
                threading.Thread(target=say_when_it_waits, daemon=True).start()
                dist.all_reduce(torch.ones(1))  # the other one never comes
            print("ready")
            while True:
                time.sleep(0.01)
        finally:
            time.sleep(1)  # its connections stay open: they must not be what ends the other one
            print("cleaned up")

    run = start(work, start_method=start_method)
    handlers = [signal.getsignal(number) for number in SIGNALS]
    wait_printed(run, "ready")
    run.stop()
    run.stop()  # the same stop
    assert run.wait(END_S)
    assert (run.phase, left_of(run.plan.marker)) == ("stopped", [])
    assert "cleaned up" not in run.output(0)
    assert "cleaned up" in run.output(1)
    assert exit_codes(run) == [-signal.SIGTERM, 128 + signal.SIGINT]
    assert reasons(run) == ["stop", "stop"]
    assert repr(run).splitlines() == [
        "Run: stopped · 2 ranks · cpu:0,1 · restarts 0/0",
        "stopped on request",
        "rank 0: stopped",
        "rank 1: stopped",
    ]
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_what_ignores_the_signals_or_never_looks_is_killed_after_grace(start):
    def work():
        import itertools
        import os
        import signal
        import time

        rank = int(os.environ["RANK"])
        try:
            if rank == 0:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("ready")
            if rank == 2:
                sum(itertools.repeat(0))  # no signal is looked at until it ends, and it does not
            while True:
                if rank == 0:
                    time.sleep(0.1)
        finally:
            print("cleaned up")

    run = start(work, n=3, dist_init="no", grace=3)
    wait_printed(run, "ready")
    summing = run.state.ranks[2].pid
    before = processes.cpu_time(summing)
    wait_until(lambda: processes.cpu_time(summing) > before + 0.2)  # it has begun to
    run.stop()
    assert run.wait(END_S)
    assert (run.phase, left_of(run.plan.marker)) == ("stopped", [])
    assert exit_codes(run) == [-signal.SIGKILL, 128 + signal.SIGINT, -signal.SIGKILL]
    assert "cleaned up" in run.output(1)  # it computed in Python
    assert "cleaned up" not in run.output(0) + run.output(2)


def test_a_stop_is_heard_while_the_agent_still_imports_torch(start):
    run = start(lambda: None, start_method="spawn", standby="off")
    run.stop()
    assert run.wait(END_S)
    assert (run.phase, run.state.attempts, left_of(run.plan.marker)) == ("stopped", (), [])


def test_a_stop_is_heard_while_the_group_is_started_again(start):
    def work():
        raise ValueError("again and again")

    run = start(work, n=1, dist_init="no", max_restarts=100)
    wait_until(lambda: run.phase == "restarting")
    run.stop()
    assert run.wait(END_S)
    assert (run.phase, left_of(run.plan.marker)) == ("stopped", [])
    assert run.restarts < 10
    assert "stopped on request" in repr(run)


def test_kill_ends_ranks_that_a_stop_lets_clean_up(start):
    def work():
        import time

        try:
            print("ready")
            time.sleep(10_000)
        finally:
            print("cleaning up")
            time.sleep(10_000)

    run = start(work, n=1, dist_init="no", grace=10_000)
    wait_printed(run, "ready")
    run.stop()
    wait_printed(run, "cleaning up")
    run.kill()
    assert run.wait(END_S)
    assert (run.phase, exit_codes(run), left_of(run.plan.marker)) == ("stopped", [-signal.SIGKILL], [])
    assert "stopped on request" in repr(run)  # the first reason stays


@pytest.mark.parametrize("how", ["answers", "does not answer"])
def test_kill_alone_is_enough(start, how):
    def work():
        import time

        try:
            print("ready")
            time.sleep(10_000)
        finally:
            time.sleep(10_000)

    run = start(work, n=1, dist_init="no", grace=10_000)
    wait_printed(run, "ready")
    if how == "does not answer":
        os.kill(run.state.agent_pid, signal.SIGSTOP)
    run.kill()
    assert run.wait(END_S)
    assert (run.phase, left_of(run.plan.marker)) == ("stopped", [])
    assert "killed on request" in repr(run)


def test_an_agent_that_does_not_answer_a_stop_is_killed_with_all_it_started(start):
    def work():
        import subprocess
        import time

        subprocess.Popen(["sleep", "10000"], start_new_session=True)
        print("ready")
        time.sleep(10_000)

    run = start(work, n=1, dist_init="no", grace=10_000)
    wait_printed(run, "ready")
    os.kill(run.state.agent_pid, signal.SIGSTOP)
    run.stop()
    assert run.wait(END_S)
    assert (run.phase, left_of(run.plan.marker)) == ("stopped", [])
    assert reasons(run) == ["stop"]  # the journal was closed by the kernel
    assert "stopped on request" in repr(run)


def test_timeout_fails_the_run_by_what_was_asked_whatever_ranks_say_while_they_end():
    def work():
        import os
        import time

        import torch
        import torch.distributed as dist

        try:
            if os.environ["RANK"] == "0":
                dist.all_reduce(torch.ones(1))
            time.sleep(10_000)
        finally:
            raise OSError("the checkpoint could not be written")

    with pytest.raises(RunFailed, match=r"^stopped after timeout=2 s") as caught:
        ElasticLauncher("cpu:0-1", ui="none", timeout=2, start_method="forkserver")(work)
    run = caught.value.run
    assert (run.phase, left_of(run.plan.marker)) == ("failed", [])
    assert "stopped after timeout=2 s" in repr(run)
    assert caught.value.__cause__ is None


def test_everything_that_a_stopped_rank_has_started_is_gone(start):
    def work():
        import os
        import subprocess
        import time

        import torch
        from torch.utils.data import DataLoader

        class Slow(torch.utils.data.Dataset):
            def __len__(self):
                return 10_000

            def __getitem__(self, index):
                time.sleep(0.01)
                return index

        subprocess.Popen(["sleep", "10000"])
        subprocess.Popen(["sleep", "10000"], start_new_session=True)
        subprocess.Popen(["nohup", "sleep", "10000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        subprocess.run("trap '' TERM INT HUP; (setsid sh -c 'while :; do sleep 1; done' &) ; exit 0", shell=True, check=True)
        for n, _ in enumerate(DataLoader(Slow(), num_workers=2)):
            if n == 3:
                print("ready", os.getpid())

    run = start(work, dist_init="no")
    wait_printed(run, "ready")
    assert len(left_of(run.plan.marker)) >= 1 + 2 * (1 + 4 + 2)  # the agent, and for each rank itself, four programs, two workers
    run.stop()
    assert run.wait(END_S)
    assert (run.phase, left_of(run.plan.marker)) == ("stopped", [])


def test_other_runs_are_untouched_by_a_stop(start, tmp_path):
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

    stopped = start(work, n=1, dist_init="no")
    other = start(work, n=1, dist_init="no")
    for run in (stopped, other):
        wait_printed(run, "ready")
    stopped.stop()
    assert stopped.wait(END_S)
    assert left_of(stopped.plan.marker) == []
    with open(go_on, "w"):
        pass
    assert other.wait(END_S)
    assert (other.phase, other.results[0]) == ("succeeded", None)  # its child, too, was still there


def test_a_run_started_from_a_thread_outlives_the_thread(start, tmp_path):
    go_on = str(tmp_path / "go on")

    def work():
        import ctypes
        import os
        import time

        death_signal = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(death_signal))  # PR_GET_PDEATHSIG
        print("ready")
        while not os.path.exists(go_on):
            time.sleep(0.01)
        return death_signal.value

    runs = []
    thread = threading.Thread(target=lambda: runs.append(start(work, n=1, dist_init="no")))
    thread.start()
    thread.join()
    wait_printed(runs[0], "ready")
    with open(go_on, "w"):
        pass
    assert runs[0].result() == signal.SIGKILL


# ---- the notebook's interrupt ------------------------------------------------------------------------------------------------------------

LAUNCH = "%%elastic_launch devices=cpu:0-1 dist_init=no ui=text -o run"


def until_printed(text: str, times: int):
    return lambda outcome: outcome.text.count(text) >= times


def test_an_interrupt_reaches_each_rank_once_and_from_the_agent_and_leaves_the_kernel_as_it_was(shared_kernel):
    shared_kernel.run("import signal\nkept = [1, 2, 3]")
    look = "[str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)]"
    handlers = shared_kernel.value(look)
    cell = shared_kernel.start(
        LAUNCH
        + """
def work():
    import ctypes, os, signal, time

    class Action(ctypes.Structure):
        _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_byte * 128), ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]

    senders = []

    @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    def on_interrupt(number, info, context):
        senders.append(ctypes.c_int.from_address(info + 16).value)  # siginfo_t.si_pid

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it does not acknowledge, and is not to be terminated for that
    action = Action(ctypes.cast(on_interrupt, ctypes.c_void_p), flags=4)  # SA_SIGINFO
    libc = ctypes.CDLL(None)
    libc.sigaction(signal.SIGINT, ctypes.byref(action), None)
    print("rea" + "dy")
    while not senders:
        libc.usleep(1000)
    for _ in range(500):
        libc.usleep(1000)  # further ones would come meanwhile
    print("from the agent alone:", senders == [os.getppid()])
    raise KeyboardInterrupt
"""
    )
    shared_kernel.finish(cell, until=until_printed("ready", 2))
    shared_kernel.interrupt()
    outcome = shared_kernel.finish(cell)
    assert (outcome.error_name, outcome.error) == ("KeyboardInterrupt", "KeyboardInterrupt: the run was stopped")
    assert outcome.text.count("from the agent alone: True") == 2, outcome.text
    assert shared_kernel.value("(run.phase.value, run.state.stop_reason.value, kept)") == ("stopped", "interrupt", [1, 2, 3])
    assert shared_kernel.value(look) == handlers

    again = shared_kernel.run(LAUNCH + "\n6 * 7")
    assert not again.error
    assert shared_kernel.value("dict(run.results)") == {0: 42, 1: 42}


def test_a_second_interrupt_kills(shared_kernel):
    cell = shared_kernel.start(
        LAUNCH
        + """ grace=10000
import time
try:
    print("rea" + "dy")
    time.sleep(10_000)
finally:
    print("cleaning " + "up")
    time.sleep(10_000)
"""
    )
    shared_kernel.finish(cell, until=until_printed("ready", 2))
    shared_kernel.interrupt()
    shared_kernel.finish(cell, until=until_printed("cleaning up", 2))
    shared_kernel.interrupt()
    outcome = shared_kernel.finish(cell)
    assert outcome.error_name == "KeyboardInterrupt"
    codes = shared_kernel.value("[rank.exit_code for rank in run.state.ranks.values()]")
    assert codes == [-signal.SIGKILL, -signal.SIGKILL]


def test_an_interrupt_of_another_cell_reaches_nobody_of_a_background_run(shared_kernel, tmp_path):
    go_on = tmp_path / "go on"
    shared_kernel.run(f"go_on = {str(go_on)!r}")
    shared_kernel.run(
        LAUNCH.replace("ui=text", "ui=none background=true")
        + """
import os, time
print("ready")
while not os.path.exists(go_on):
    time.sleep(0.01)
"untouched"
"""
    )
    cell = shared_kernel.start(
        "import time\nwhile not all('ready' in run.output(rank) for rank in (0, 1)): time.sleep(0.01)\nprint('rea' + 'dy')\ntime.sleep(100)"
    )
    shared_kernel.finish(cell, until=until_printed("ready", 1))
    shared_kernel.interrupt()
    assert shared_kernel.finish(cell).error_name == "KeyboardInterrupt"
    go_on.touch()
    assert shared_kernel.value("run.wait(), run.phase.value, dict(run.results)") == (
        True,
        "succeeded",
        {0: "untouched", 1: "untouched"},
    )


def test_a_cell_that_waits_ends_by_keyboard_interrupt_however_its_run_was_stopped(shared_kernel):
    shared_kernel.run(
        "import threading, time\n"
        "def press():\n"
        "    while 'ready' not in getattr(globals().get('stopped'), 'output', lambda rank: '')(0): time.sleep(0.01)\n"
        "    stopped.stop()\n"
        "threading.Thread(target=press).start()"
    )
    outcome = shared_kernel.run(
        "%%elastic_launch devices=cpu dist_init=no ui=none -o stopped\nimport time\nprint('ready')\ntime.sleep(10_000)"
    )
    assert (outcome.error_name, outcome.error) == ("KeyboardInterrupt", "KeyboardInterrupt: the run was stopped")
    assert "stopped on request" in outcome.text  # the report is displayed before the error
