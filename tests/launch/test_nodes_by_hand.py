"""Nodes that are each started by hand meet by torchrun's static and c10d options, without a token."""

from __future__ import annotations

import contextlib
import functools
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import HANG_S, end_all, wait_printed, wait_until
from test_nodes import alone_or_wait, meet

from ice_notebook import launcher, planning
from ice_notebook import protocol as p
from ice_notebook.agents import AgentProcess
from ice_notebook.launch_options import LaunchOptions
from ice_notebook.nodes.errors import NodeError
from ice_notebook.run import Run


@pytest.fixture
def node() -> Iterator[Callable[..., Run]]:
    """Return `node(function, *args, **options)`, which starts one node of several; what follows from its options is in the plan alone."""
    runs: list[Run] = []

    def begin(function: Callable[..., Any], *args: Any, **asked: Any) -> Run:
        options = LaunchOptions.of({"devices": "cpu:0", "by_value": "test_nodes", **asked}).validate_by_hand()
        with launcher._prepare_run(options, *launcher.read_call(function, args, {})) as run:
            run.plan = p.replace(run.plan, nodes=None, group=planning.make_group_plan(options))
            agent = AgentProcess(run.plan.preparation())
            agent.run(run.plan)
            run.start(agent, run.plan)
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
        ({"node_rank": 0}, "The nodes did not all meet at 127.0.0.1:{port} within 1 s: 1 of 2 did."),
        ({"node_rank": 1}, "The nodes did not all meet at 127.0.0.1:{port} within 1 s: 0 of 2 did."),
    ],
)
def test_a_static_node_that_stays_alone_says_so(node, port, options, sentence):
    run = node(meet, nnodes=2, master_port=port, rdzv_configs="timeout=1", **options)
    assert run.wait(HANG_S)
    assert run.phase == "failed"
    assert str(run.exception()).startswith(sentence.format(port=port))


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
    lines = sorted(line for text in said for line in text.splitlines() if " of " in line)
    assert lines == [f"[{rank}] rank {rank} of 2 node {rank} 3.0" for rank in (0, 1)]


@pytest.mark.parametrize(
    ("meeting", "theirs", "sentence"),
    [
        ("static", 1, "A node that came to 127.0.0.1:{port} was started with torchrun, which cannot take part"),
        ("static", 0, "What listens at 127.0.0.1:{port} is no node of ice_notebook, but a torchrun or another store of torch's."),
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


def test_a_node_that_does_not_answer_after_torchs_rendezvous_is_given_up():
    import torch.distributed as dist
    from torch.distributed.elastic.rendezvous import RendezvousInfo

    from ice_notebook.agent.by_hand import check_others

    store = dist.HashStore()
    there = RendezvousInfo(store, 0, 2, None)
    with pytest.raises(
        NodeError, match=r"A node that came to here:1 did not answer as ice_notebook does within 0\.1 s: it was lost, or"
    ):
        check_others(there, "here:1", lambda: False, timeout_s=0.1)
    check_others(RendezvousInfo(store, 1, 2, None), "here:1", lambda: False)  # the other has answered before
