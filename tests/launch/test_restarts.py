"""Restarts: the whole worker group is started again, on a clean store, and only the last attempt counts."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil
import pytest
from support import left_of, wait_until

from ice_notebook import RunFailed
from ice_notebook.errors import LaunchError
from ice_notebook.kernel.run import Run


class Watcher:
    """A view that keeps what it has seen, and leaves a note of it where ranks can wait for it."""

    def __init__(self, run: Run, notes: Path) -> None:
        self.run = run
        self.notes = notes
        self.seen: list[tuple[str, int]] = []

    def update(self) -> None:
        state = self.run.state
        if not self.seen or self.seen[-1] != (state.phase.value, state.restarts):
            self.seen.append((state.phase.value, state.restarts))
            (self.notes / f"{state.phase.value} {state.restarts}").touch()


@pytest.fixture(scope="module")
def restarted(tmp_path_factory):
    """A run that fails twice and then returns, with what a view has seen of it."""
    from ice_notebook import ElasticLauncher

    notes = tmp_path_factory.mktemp("seen")
    seen = str(notes)

    def work():
        import os
        import signal
        import threading
        import time

        import torch
        import torch.distributed as dist

        def wait_seen(what):
            while not os.path.exists(os.path.join(seen, what)):
                time.sleep(0.01)

        def leave(*_):
            wait_seen(f"restarting {restarts}")
            os._exit(0)

        rank, restarts = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        if rank == 0:
            signal.signal(signal.SIGTERM, leave)
        total = torch.ones(1) * (rank + 1)
        dist.all_reduce(total)
        print(f"rank {rank}, restart {restarts}, total {total.item()}")
        if restarts < 2 and rank == 0:
            threading.Thread(target=threading.Event().wait).start()  # the process stays until it is ended
            return "a value of an earlier attempt"
        if restarts < 2:
            wait_seen(f"running {restarts}")
            raise ValueError(f"bad loss {restarts}")
        return restarts, int(os.environ["TORCHELASTIC_MAX_RESTARTS"]), total.item()

    run = ElasticLauncher("cpu:0-1", ui="none", max_restarts=5, start_method="forkserver", grace=60).start(work)
    watcher = Watcher(run, notes)
    run.subscribe(watcher)
    assert run.wait(120)
    wait_until(lambda: watcher.seen[-1] == ("succeeded", 2))
    yield run, watcher
    run.kill()


def test_a_run_succeeds_when_a_later_attempt_does(restarted):
    run, _ = restarted
    assert (run.phase, run.restarts, len(run.state.attempts)) == ("succeeded", 2, 3)
    assert left_of(run.plan.marker) == []


def test_values_are_those_of_the_last_attempt_and_ranks_know_how_often_they_were_started_again(restarted):
    run, _ = restarted
    assert dict(run.results) == {0: (2, 5, 3.0), 1: (2, 5, 3.0)}
    assert run.state.attempts[0].ranks[0].value is not None  # it had returned; what became of the others took it back


def test_the_output_of_every_attempt_is_kept(restarted):
    run, _ = restarted
    for attempt in range(3):
        for rank in range(2):
            assert run.output(rank, attempt).startswith(f"rank {rank}, restart {attempt}, total 3.0\n")
    assert run.output(0) == run.output(0, 2)
    assert "ValueError: bad loss 1" in run.output(1, 1)


def test_restarts_are_counted_while_the_run_goes_on(restarted):
    _, watcher = restarted
    counts = [count for _, count in watcher.seen]
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2}
    assert ("restarting", 0) in watcher.seen
    assert ("restarting", 1) in watcher.seen


def test_the_report_tells_why_each_restart_was(restarted):
    run, _ = restarted
    lines = repr(run).splitlines()
    assert lines[0] == "Run: succeeded · 2 ranks · cpu:0,1 · restarts 2/5"
    assert lines[1].startswith("restart 1: rank 1: ValueError: bad loss 0")
    assert lines[2].startswith("restart 2: rank 1: ValueError: bad loss 1")


def test_a_run_fails_when_no_restart_is_left(launch):
    def work():
        import os

        raise ValueError(f"bad loss {os.environ['TORCHELASTIC_RESTART_COUNT']}")

    run = launch(work, n=1, dist_init="no", max_restarts=1)
    assert (run.phase, run.restarts) == ("failed", 1)
    error = run.exception()
    assert str(error).startswith("rank 0: ValueError: bad loss 1")
    assert "restarts used: 1 of 1" in error.lines
    assert any(line.startswith("restart 1: rank 0: ValueError: bad loss 0") for line in error.lines)
    with pytest.raises(RunFailed, match="bad loss 1"):
        run.results[0]
    assert left_of(run.plan.marker) == []


def test_a_port_that_the_user_names_is_taken_again_by_every_attempt(launch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work():
        import os

        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os._exit(1)  # its connections are reset
        return int(os.environ["MASTER_PORT"])

    run = launch(work, max_restarts=1, master_port=port)
    assert dict(run.results) == {0: port, 1: port}, run


def test_a_port_that_is_taken_is_named(launch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError) as caught:
            launch(lambda: None, n=1, master_port=port)
    name = psutil.Process().name()
    assert str(caught.value) == (
        f"The port {port} on 127.0.0.1 is in use by {name} (pid {os.getpid()}): give another one, or none for a free one."
    )


def test_what_a_failed_attempt_has_started_is_gone_before_the_next_one_begins(launch):
    def work():
        import os
        import subprocess

        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            child = subprocess.Popen(["sleep", "10000"], start_new_session=True)
            print(child.pid)
            os._exit(1)
        return True

    run = launch(work, n=1, dist_init="no", max_restarts=1)
    assert run.results[0] is True
    pid = int(run.output(0, 0))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_error_file_that_was_not_finished_does_not_end_the_run(launch):
    # torch reads the file of a failed rank when it has a name for it, and what it raised would end the agent.
    def work():
        import os
        from pathlib import Path

        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text('{"message": ')
            os._exit(1)
        return True

    run = launch(work, n=1, dist_init="no", max_restarts=1)
    assert run.results[0] is True
    assert repr(run).splitlines()[1] == "restart 1: rank 0: left with exit code 1"
