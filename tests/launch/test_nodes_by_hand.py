"""Nodes that are each started by hand meet by torchrun's static and c10d options, without a token."""

from __future__ import annotations

import base64
import contextlib
import functools
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist
from support import HANG_S, end_all, wait_printed, wait_until
from test_nodes import alone_or_wait, meet

from ice_notebook.host import ports
from ice_notebook.host.interrupts import held
from ice_notebook.kernel import planning
from ice_notebook.kernel.run import Run
from ice_notebook.options.launch_options import LaunchOptions
from ice_notebook.runs import report
from ice_notebook.ui import launcher
from ice_notebook.wire import protocol as p


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    """Return `node(function, *args, **options)`, which starts one node of several; what follows from its options is in the plan alone."""
    monkeypatch.setattr(
        ports, "is_free", lambda *_: True
    )  # as for a script, which is not asked: at other nodes the port is another's
    runs: list[Run] = []

    def begin(function: Callable[..., Any], *args: Any, **asked: Any) -> Run:
        options = LaunchOptions.of({"devices": "cpu:0", "by_value": "test_nodes", **asked}).validate_by_hand()

        def make_plan(*given: Any, **more: Any) -> p.Plan:
            return p.replace(planning.make_plan(*given, **more), nodes=None, group=planning.make_group_plan(options))

        with monkeypatch.context() as patched, held() as interrupts:
            patched.setattr(launcher, "make_plan", make_plan)
            run = launcher._begin_run(options, *launcher.read_call(function, args, {}), interrupts, lambda _n_ranks: p.Wiring())
        runs.append(run)
        return run

    yield begin
    end_all(runs)


@pytest.fixture
def port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize("first", [0, 1])
def test_two_static_nodes_meet_on_one_port_in_either_order(node, port, first):
    begin = functools.partial(node, meet, nnodes=2, master_port=port)
    runs = {rank: begin(node_rank=rank) for rank in (first, 1 - first)}
    for rank in (0, 1):
        assert runs[rank].wait(HANG_S)
        assert dict(runs[rank].results) == {rank: (rank, 2, 3.0)}, runs[rank]


def test_static_nodes_start_anew_together(node, port):
    def work():
        import os

        import torch
        import torch.distributed as dist

        dist.all_reduce(torch.ones(1))
        if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            raise ValueError("once more")
        dist.all_reduce(torch.ones(1))
        return int(os.environ["MASTER_PORT"])

    runs = [node(work, nnodes=2, master_port=port, node_rank=rank, max_restarts=2) for rank in (0, 1)]
    for rank, run in enumerate(runs):
        assert run.wait(HANG_S)
        assert dict(run.results) == {rank: port}, run


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"node_rank": 0}, "The nodes did not all meet at 127.0.0.1:{port} within 1 s: 1 of 2 did (node 0)."),
        ({"node_rank": 1}, "The nodes' meeting place 127.0.0.1:{port} was not reached within 1 s: nothing listens there."),
    ],
)
def test_a_static_node_that_stays_alone_says_so(node, port, options, sentence):
    run = node(meet, nnodes=2, master_port=port, rdzv_configs="timeout=1", **options)
    assert run.wait(HANG_S)
    assert run.phase == "failed"
    assert str(run.exception()).startswith(sentence.format(port=port))


@pytest.mark.parametrize("backend", ["static", "c10d"])
def test_the_time_to_meet_is_kept_whatever_is_at_the_meeting_place(node, port, backend):
    """A host that nobody knows, a listener that never speaks, and nodes that stay away. The screen says what is waited for."""

    def begin(host: str, at: int) -> Run:
        place = (
            {"master_addr": host, "master_port": at, "node_rank": 1} if backend == "static" else {"rdzv_endpoint": f"{host}:{at}"}
        )
        return node(meet, nnodes=2, rdzv_backend=backend, rdzv_configs="timeout=3", **place)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        runs = {"no-such.invalid": (begin("no-such.invalid", port), "the host is not known here (")}
        at = silent.getsockname()[1]
        runs["127.0.0.1"] = begin("127.0.0.1", at), "what listens there does not answer."
        for host, (run, why) in runs.items():
            wait_until(lambda run=run: run.state.gathering or run.done())
            state = run.state
            waiting = report.waiting_sentence(run.plan, state)
            assert state.phase.is_final or waiting.startswith(f"waiting for nodes: {host}:")
            assert run.wait(20)
            assert run.phase == "failed"
            assert (
                f"The nodes' meeting place {host}:{port if host != '127.0.0.1' else at} was not reached within 3 s: {why}"
                in str(run.exception())
            )


@pytest.mark.parametrize("backend", ["static", "c10d"])
def test_a_lost_node_is_noticed_although_its_ranks_use_no_collective(node, port, backend, tmp_path):
    end = tmp_path / "end"
    place = {"master_port": port} if backend == "static" else {"rdzv_endpoint": f"127.0.0.1:{port}"}
    common: Any = {
        "nnodes": 2 if backend == "static" else "1:2",
        "rdzv_backend": backend,
        "rdzv_configs": "last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=3",
        **place,
    }
    first = node(rest, str(end), dist_init="no", **common)
    wait_until(lambda: first.state.gathering is not None)
    assert "1 of " in report.waiting_sentence(first.plan, first.state)
    second = node(rest, str(end), dist_init="no", **common, **({"node_rank": 1} if backend == "static" else {}))
    wait_met(first, second)
    os.kill(second.state.agent_pid, signal.SIGKILL)
    loss = "node 1 was lost" if backend == "static" else "node 1 (127.0.0.1) was lost"
    wait_until(lambda: loss in [attempt.ended_by for attempt in first.state.attempts])
    if backend == "c10d":
        wait_until(
            lambda: first.state.attempt.ranks and not first.state.attempt.ended_by and "of 1" in first.output(*first.state.ranks)
        )
        end.touch()
    else:
        first.stop()  # it would wait for the other node to come again
    assert first.wait(HANG_S)
    assert (first.restarts, dict(first.results)) == (0, {0: 1} if backend == "c10d" else {})


def wait_met(*runs: Run) -> None:
    for run in runs:
        wait_until(lambda run=run: run.done() or (run.state.ranks and "of 2" in run.output(*run.state.ranks)))
        assert not run.done(), run


def rest(end):
    import os
    import pathlib
    import time

    print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"])
    while not pathlib.Path(end).exists():
        time.sleep(0.02)
    return int(os.environ["WORLD_SIZE"])


def test_whoever_reaches_the_meeting_place_cannot_have_code_run_in_an_agent(node, port, tmp_path):
    """It listens on the address that it was given, and nothing that lies there is unpickled."""
    mark = tmp_path / "code ran"
    pickled = pickle.dumps(Evil(f"touch '{mark}'"))
    for key, sentence in (
        ("ice_notebook/rendezvous/job7", f"What lies at the nodes' meeting place 127.0.0.1:{port} was not written by"),
        ("torch.rendezvous.job7", f"A node that came to 127.0.0.1:{port} was started with torchrun"),
    ):
        run = node(meet, nnodes=2, rdzv_backend="c10d", rdzv_endpoint=f"127.0.0.1:{port}", rdzv_id="job7")
        wait_until(lambda run=run: run.state.gathering is not None and run.state.gathering.here)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), 5)
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=10))
        store.set(key, base64.b64encode(pickled).decode())
        assert run.wait(20)
        assert sentence in str(run.exception())
    assert not mark.exists()


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_node_whose_meeting_place_is_lost_says_so(node, port):
    common: Any = {"nnodes": 2, "rdzv_backend": "c10d", "rdzv_endpoint": f"127.0.0.1:{port}", "dist_init": "no"}
    runs = [node(rest, "/nothing", **common)]
    wait_until(lambda: runs[0].state.gathering is not None and runs[0].state.gathering.here)
    runs.append(node(rest, "/nothing", **common))
    wait_met(*runs)
    os.kill(runs[0].state.agent_pid, signal.SIGKILL)
    assert runs[1].wait(HANG_S)
    assert f"The connection to the nodes' meeting place 127.0.0.1:{port} was lost" in str(runs[1].exception())


def test_c10d_nodes_come_and_go(node, port, tmp_path):
    end = tmp_path / "end"
    common: Any = {
        "nnodes": "1:2",
        "rdzv_backend": "c10d",
        "rdzv_endpoint": f"127.0.0.1:{port}",
        "rdzv_configs": "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3",
        "max_restarts": 2,
    }
    first = node(alone_or_wait, str(end), **common)
    wait_printed(first, "world 1", [0])
    second = node(alone_or_wait, str(end), **common)
    wait_until(lambda: any("world 2" in first.output(0, attempt.number) for attempt in first.state.attempts if attempt.ranks))
    second.stop()
    assert second.wait(HANG_S)
    wait_until(lambda: len(first.state.attempts) > 2 and "world 1" in first.output(*first.state.ranks))
    end.touch()
    assert first.wait(HANG_S)
    assert dict(first.results) == {0: (0, 1)}, first


@pytest.mark.parametrize("backend", ["static", "c10d"])
def test_a_node_that_waits_for_another_stops_at_once(node, port, backend):
    place = {"master_port": port} if backend == "static" else {"rdzv_endpoint": f"127.0.0.1:{port}"}
    run = node(meet, nnodes=2, rdzv_backend=backend, **place)
    with contextlib.suppress(TimeoutError):  # the store listens: the agent waits
        wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    run.stop()
    assert run.wait(20)
    assert run.phase == "stopped"


def test_a_node_that_is_done_does_not_wait_for_one_that_has_failed(node, port):
    def work():
        import os

        if os.environ["RANK"] == "1":
            raise ValueError("bad loss")

    runs = [node(work, nnodes=2, master_port=port, node_rank=rank, dist_init="no") for rank in (0, 1)]
    for run in runs:
        assert run.wait(HANG_S)  # torch would wait for five minutes
    assert [run.phase for run in runs] == ["succeeded", "failed"]


SCRIPT = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
print("rank", dist.get_rank(), "of", dist.get_world_size(), "node", os.environ["GROUP_RANK"], total.item())
dist.destroy_process_group()
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--nnodes", "2"]
LAUNCH = [sys.executable, "-m", "ice_notebook", "launch", "--nproc-per-node", "1", "--nnodes", "2"]
MEETINGS = {
    "static": "--node-rank {n} --master-addr 127.0.0.1 --master-port {port}",
    "c10d": "--rdzv-backend c10d --rdzv-endpoint 127.0.0.1:{port} --rdzv-id job",
}


def _end_of(nodes):
    """Return what programs have said until their end, or until they had to be ended."""
    clock = threading.Timer(2 * HANG_S, lambda: [node.terminate() for node in nodes])
    clock.start()
    said = [node.communicate()[0] for node in nodes]
    clock.cancel()
    return said


@pytest.mark.parametrize("meeting", MEETINGS.values(), ids=list(MEETINGS))
def test_a_script_is_started_on_each_node_as_with_torchrun(tmp_path, port, meeting):
    script = tmp_path / "meet.py"
    script.write_text(SCRIPT)
    nodes = [
        subprocess.Popen(
            [*LAUNCH, *words, str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for words in (meeting.format(n=n, port=port).split() for n in (1, 0))
    ]
    said = _end_of(nodes)
    assert [node.returncode for node in nodes] == [0, 0], said
    lines = sorted(line for text in said for line in text.splitlines() if line.startswith("[") and " of " in line)
    assert lines == [f"[{rank}] rank {rank} of 2 node {rank} 3.0" for rank in (0, 1)]


@pytest.mark.parametrize(
    ("meeting", "theirs", "sentence"),
    [
        ("static", 1, "A node that came to 127.0.0.1:{port} was started with torchrun, which cannot take part"),
        ("static", 0, "What listens at 127.0.0.1:{port} is not an ice_notebook node, but a torchrun or another store of torch's."),
        ("c10d", 0, "A node that came to 127.0.0.1:{port} was started with torchrun, which cannot take part"),
    ],
)
def test_a_torchrun_as_the_other_node_is_refused_by_name(tmp_path, port, meeting, theirs, sentence):
    script = tmp_path / "meet.py"
    script.write_text("raise SystemExit(9)")
    options = [MEETINGS[meeting].format(n=n, port=port).split() for n in (theirs, 1 - theirs)]
    log = (tmp_path / "torchrun.log").open("w")
    other = subprocess.Popen([*TORCHRUN, *options[0], str(script)], stdout=log, stderr=log)
    try:
        ours = subprocess.run([*LAUNCH, *options[1], str(script)], capture_output=True, text=True, timeout=2 * HANG_S, check=False)
    finally:
        other.kill()  # it would wait for a quarter of an hour
        other.wait()
        log.close()
    assert ours.returncode == 1, ours.stdout + ours.stderr
    assert sentence.format(port=port) in ours.stdout
    assert "or every node with torchrun." in ours.stdout
