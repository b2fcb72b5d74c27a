"""How runs fail: the right rank is named, in the words of its own failure, and told the same way every time."""

from __future__ import annotations

import os
import re
import shutil
import signal

import pytest
from support import HANG_S, left_of, wait_printed

from ice_notebook import ElasticLauncher, RunFailed
from ice_notebook.runs.store import RunFolder


class Strange(Exception):
    """Cannot be pickled: it holds what cannot travel, and its constructor wants more than a message."""

    def __init__(self, first: str, second: object) -> None:
        super().__init__(f"strange {first}")
        self.second = second


def first_failure(attempt):
    """Return the failure of an attempt's root cause."""
    return attempt.ranks[attempt.root].failure


# ---- one rank, every way to end without a value ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ways(request):
    """A run of one rank that ends in another way in each attempt, and returns in the last one, so that one launch shows them all."""
    from ice_notebook import ElasticLauncher

    def work():
        import ctypes
        import os
        import signal
        import sys
        import threading

        def raises():
            raise ValueError("bad loss")

        def raises_what_cannot_be_pickled():
            raise Strange("thing", threading.Lock())

        def raises_much():
            raise RuntimeError("x" * 5_000_000)

        ways = [
            raises,
            raises_what_cannot_be_pickled,
            raises_much,
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            lambda: ctypes.string_at(0),
            os.abort,
            lambda: os._exit(0),
            lambda: sys.exit(3),
            lambda: sys.exit("no data"),
            lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
            lambda: os.kill(os.getpid(), signal.SIGTERM),
        ]
        n = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        if n < len(ways):
            ways[n]()
        sys.exit(0)

    run = ElasticLauncher("cpu", ui="none", dist_init="no", max_restarts=11, start_method="forkserver").start(work)
    assert run.wait(240)
    yield run
    run.kill()


EVERY_WAY = [
    (0, "raised", "ValueError", 1, r"ValueError: bad loss"),
    (1, "raised", "Strange", 1, r"(\S+\.)?Strange: strange thing"),
    (2, "raised", "RuntimeError", 1, r"RuntimeError: x{50,}…?.*"),
    (
        3,
        "signal",
        "",
        -signal.SIGKILL,
        r"killed by SIGKILL \(signal 9\); something outside the run ended it, often a memory limit or a person",
    ),
    (4, "signal", "", -signal.SIGSEGV, r"killed by SIGSEGV \(signal 11\); native code.*"),
    (5, "signal", "", -signal.SIGABRT, r"killed by SIGABRT \(signal 6\); native code gave up.*"),
    (6, "exit", "", 0, r"left with exit code 0 without returning a value \(os\._exit, or an exit in native code\)"),
    (7, "raised", "SystemExit", 3, r"SystemExit: 3"),
    (8, "raised", "SystemExit", 1, r"SystemExit: no data"),
    (9, "raised", "KeyboardInterrupt", 130, r"KeyboardInterrupt"),
    (10, "signal", "", -signal.SIGTERM, r"killed by SIGTERM \(signal 15\); something outside the run asked it to end.*"),
]


@pytest.mark.parametrize("told", EVERY_WAY, ids=lambda told: told[2] or str(told[3]))
def test_every_way_to_end_without_a_value_is_told_in_words(ways, told):
    attempt, kind, type_name, code, headline = told
    failure = first_failure(ways.state.attempts[attempt])
    assert (failure.kind, failure.type_name, failure.exit_code) == (kind, type_name, code)
    assert re.fullmatch(headline, failure.headline), failure.headline[:300]
    assert len(failure.headline) < 10_000


def test_exit_0_is_a_success_without_a_value(ways):
    assert (ways.phase, ways.restarts, dict(ways.results)) == ("succeeded", 11, {0: None})


def test_the_line_of_a_crash_in_native_code_is_known(ways):
    source = [frame.source for frame in first_failure(ways.state.attempts[4]).frames]
    traceback = first_failure(ways.state.attempts[4]).traceback
    assert source or "test_failures.py" in traceback
    assert "Segmentation fault" in traceback


# ---- which rank it was -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["raises", "is killed", "leaves"])
def test_the_root_cause_is_the_rank_that_failed_although_its_siblings_lose_their_connections(launch, how):
    def work():
        import os
        import signal

        import torch
        import torch.distributed as dist

        dist.barrier()
        if os.environ["RANK"] == "1":
            if how == "raises":
                raise ValueError("bad loss")
            if how == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        dist.all_reduce(torch.ones(1))

    run = launch(work, n=3)
    assert run.phase == "failed"
    assert run.state.attempt.root == 1
    error = run.exception()
    assert isinstance(error, RunFailed)
    assert error.run is run
    assert str(error).startswith("rank 1: ")
    assert "rank 0: stopped because rank 1 failed" in repr(run)
    assert "rank 2: stopped because rank 1 failed" in repr(run)
    if how == "raises":
        assert isinstance(error.__cause__, ValueError)
        assert str(error.__cause__) == "bad loss"
    with pytest.raises(RunFailed):
        run.results[0]
    assert left_of(run.plan.marker) == []


def test_an_interrupt_that_the_run_did_not_send_is_a_failure_and_uses_a_restart(start):
    def work(launcher):
        import time

        if launcher.restart_count == 0:
            print("ready")
            time.sleep(10_000)
        return launcher.rank

    run = start(work, ElasticLauncher(), dist_init="no", max_restarts=1)
    wait_printed(run, "ready")
    os.kill(run.state.ranks[1].pid, signal.SIGINT)
    assert run.wait(HANG_S)
    assert (run.phase, run.restarts, dict(run.results)) == ("succeeded", 1, {0: 0, 1: 1})
    assert "restart 1: rank 1: interrupted by a SIGINT from outside the run" in repr(run)
    printed = run.output(1, attempt=0)
    assert "time.sleep(10_000)" in printed
    assert "_on_interrupt" not in printed


def test_ranks_that_interrupt_themselves_fail_the_run(launch):
    def work():
        import os
        import signal

        os.kill(os.getpid(), signal.SIGINT)

    run = launch(work, dist_init="no")
    assert (run.phase, {rank.value for rank in run.state.ranks.values()}) == ("failed", {None})
    with pytest.raises(RunFailed, match="interrupted by a SIGINT"):
        run.result()


def test_a_process_that_a_function_forks_speaks_for_itself_alone(launch):
    def work():
        import os
        import sys

        def leave():
            sys.exit(3)

        def fail():
            raise RuntimeError("in the child")

        def end_of(act):
            pid = os.fork()
            if pid == 0:
                act()
                return "the child"
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        return [end_of(act) for act in (leave, fail, int)]

    run = launch(work, n=1, dist_init="no")
    assert run.result() == [3, 1, 0]
    assert "in fail\n" in run.output(0)
    assert "RuntimeError: in the child" in run.output(0)
    assert "rank/main.py" not in run.output(0)


def test_siblings_that_do_not_end_by_themselves_are_terminated_without_being_asked(launch):
    def work():
        import os
        import time

        if os.environ["RANK"] == "1":
            raise ValueError("bad loss")
        try:
            time.sleep(10_000)
        finally:
            print("asked")

    run = launch(work, dist_init="no", grace=10_000)
    assert run.state.ranks[0].exit_code == -signal.SIGTERM
    assert "asked" not in run.output(0)


def test_two_ranks_that_fail_at_once_are_both_told(launch):
    def work():
        import os

        import torch.distributed as dist

        dist.barrier()
        raise ValueError(f"bad loss {os.environ['RANK']}")

    run = launch(work)
    root = run.state.attempt.root
    assert sorted(run.failures) == [0, 1]
    assert next(iter(run.failures)) == root
    assert f"rank {1 - root}: also failed: ValueError: bad loss {1 - root}" in repr(run)
    assert str(run.exception().__cause__) == f"bad loss {root}"


def test_a_crash_after_the_value_was_written_is_a_success_with_a_note(launch):
    def work():
        import atexit
        import os

        atexit.register(os.abort)
        return 42

    run = launch(work, n=1, dist_init="no")
    assert (run.phase, run.results[0]) == ("succeeded", 42)
    assert run.state.ranks[0].exit_code == -signal.SIGABRT
    assert "rank 0: left with exit code -6 after its value was written" in repr(run)


def test_a_value_that_cannot_be_sent_does_not_fail_the_run(launch):
    def work():
        import threading

        return {"lock": threading.Lock()}

    run = launch(work, n=1, dist_init="no")
    assert run.phase == "succeeded"
    with pytest.raises(Exception, match=r"The value returned by rank 0 cannot be sent back: .*lock.* is a lock\."):
        run.results[0]


def test_what_agent_and_torch_have_to_say_is_in_the_agents_log_alone(launch, capfd):
    def work():
        raise ValueError("bad loss")

    run = launch(work, n=1, dist_init="no", env={"LOGLEVEL": "INFO"})
    assert capfd.readouterr() == ("", "")
    assert "elastic/agent/server" in (run.folder / "agent.log").read_text()
    assert "elastic/agent/server" not in run.output(0)


# ---- in a notebook -----------------------------------------------------------------------------------------------------------------------

FAILING = """%%elastic_launch devices=cpu:0-2 env=LOGLEVEL=INFO ui=text -o run
import torch.distributed as dist

def train(launcher):
    dist.barrier()
    for step in range(3):
        loss = step
        if launcher.rank == 1:
            raise ValueError("bad loss at " + repr(object()))
        dist.barrier()
    return loss
"""


@pytest.fixture(scope="module")
def failed_twice(shared_kernel):
    """The same failing cell, run twice: (outcome, report's text, report's page, what no report may hold) of each."""
    told = []
    for _ in range(2):
        outcome = shared_kernel.run(FAILING)
        page = shared_kernel.value("run._repr_html_()")
        secrets = shared_kernel.value(
            "[run.id, run.plan.marker, str(run.folder), run.folder.name, str(run.state.agent_pid), "
            "*(str(rank.pid) for rank in run.state.ranks.values())]"
        )
        told.append((outcome, shared_kernel.value("repr(run)"), page, secrets))
    return told


def without_cell_numbers(text: str) -> str:
    return re.sub(r"In\s*\[\d+\]|execution_count=\d+", "In[n]", text)


def test_the_cells_error_shows_the_failing_rank_with_the_cells_own_lines(failed_twice, shared_kernel):
    outcome = failed_twice[0][0]
    assert outcome.error_name == "RunFailed"
    assert outcome.error_value.startswith("rank 1: ValueError: bad loss at <object object")
    for line in (
        "Traceback of rank 1",
        'raise ValueError("bad loss at " + repr(object()))',
        "Cell In[",
        "line 9",
        "rank 0: stopped because rank 1 failed",
    ):
        assert line in outcome.error, outcome.error
    assert shared_kernel.value("run.phase.value") == "failed"  # bound by -o, although the cell failed


def test_the_same_failure_is_told_in_the_same_words_every_time(failed_twice):
    (first, first_text, first_page, secrets), (second, second_text, second_page, _) = failed_twice
    assert without_cell_numbers(first.error) == without_cell_numbers(second.error)
    assert without_cell_numbers(first_text) == without_cell_numbers(second_text)
    assert without_cell_numbers(first_page) == without_cell_numbers(second_page)
    for told in (first.error, first.error_value, first_text, first_page):
        assert [secret for secret in secrets if secret in told] == []
        assert not re.search(r"0x[0-9a-f]{6,}", told)


def test_the_cell_shows_nothing_that_torch_logs(failed_twice):
    outcome = failed_twice[0][0]
    streams = "".join(out["text"] for out in outcome.outputs if out["type"] == "stream")
    assert streams
    assert "elastic/agent/server" not in streams


def test_a_segmentation_fault_shows_the_cells_line(shared_kernel):
    outcome = shared_kernel.run(
        "%%elastic_launch devices=cpu dist_init=no ui=none -o run\n"
        "import ctypes\n"
        "def crash():\n"
        "    before = 1\n"
        "    ctypes.string_at(0)\n"
        "crash()\n"
    )
    assert outcome.error_name == "RunFailed"
    assert re.match(r"rank 0: killed by SIGSEGV \(signal 11\); .* \(.*, line 5\)", outcome.error_value), outcome.error_value
    assert "ctypes.string_at(0)" in outcome.error


def test_a_notebook_class_of_exception_is_the_cause_as_the_notebook_knows_it(shared_kernel):
    shared_kernel.run("class Diverged(Exception):\n    pass")
    shared_kernel.run("%%elastic_launch devices=cpu dist_init=no ui=none -o run\nraise Diverged('loss is nan', 7)")
    cause = "type(run.exception().__cause__) is Diverged and run.exception().__cause__.args"
    assert shared_kernel.value(cause) == ("loss is nan", 7)


# ---- torch's side ------------------------------------------------------------------------------------------------------------------------


def test_a_torch_that_does_not_start_its_workers_through_start_processes_is_noticed(monkeypatch, tmp_path):
    from types import SimpleNamespace

    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    from ice_notebook.agent.elastic import IceAgent

    plan = SimpleNamespace(
        rdzv_id="none",
        master_addr="127.0.0.1",
        master_port=0,
        role="default",
        world_size=2,
        name="work",
        max_restarts=0,
        group=None,
    )
    agent = IceAgent(plan, None)
    monkeypatch.setattr(LocalElasticAgent, "_start_workers", lambda self, group: {0: 1, 1: 2})
    with pytest.raises(
        RuntimeError,
        match=r"torch 2\.\S+ is not as this version of ice_notebook knows it: local_elastic_agent\.start_processes is new, gone, or not used",
    ):
        agent._start_workers(agent.get_worker_group())


def test_a_fault_of_the_agent_is_told_as_such_and_leaves_nothing(launch, tmp_path):
    """A program that starts in place of the interpreter's own modules: torch cannot be imported in the agent, only in ranks."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif any('agent.main' in argument for argument in sys.orig_argv):\n    sys.modules['torch'] = None\n"
    )
    run = launch(lambda: 1, n=1, dist_init="no", env={"PYTHONPATH": str(tmp_path)}, start_method="spawn", standby="off")
    assert run.phase == "failed"
    assert str(run.exception()).startswith("the agent failed: "), run
    assert left_of(run.plan.marker) == []


# ---- what the run is kept in -------------------------------------------------------------------------------------------------------------


def test_a_run_whose_folder_is_gone_before_it_begins_says_so_and_leaves_nothing(launch, monkeypatch):
    written = RunFolder.write_plan

    def write_and_remove(self, plan):
        written(self, plan)
        shutil.rmtree(self.path)

    monkeypatch.setattr(RunFolder, "write_plan", write_and_remove)
    run = launch(lambda: None, dist_init="no")
    assert run.phase == "failed"
    assert run.state.end_reason == "the run folder cannot be written: No such file or directory"
    assert left_of(run.plan.marker) == []
