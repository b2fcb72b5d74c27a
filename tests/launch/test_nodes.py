"""Runs of several nodes: machines that join, leave and are lost. Each node is an agent of its own on this machine."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import HANG_S, left_of, wait_printed, wait_until

from ice_notebook.kernel.run import Run
from ice_notebook.ui.widgets.panel_state import banner
from ice_notebook.wire.token import VARIABLE, Token

JOIN = [sys.executable, "-m", "ice_notebook", "join"]
OTHER = "import sys; from ice_notebook.wire import node_messages as m; from ice_notebook.ui import join; hello = m.hello(); {change}; sys.exit(join.main(sys.argv[1:]))"

BY_VALUE = {"by_value": "test_nodes"}  # this file is not on the path of another machine


@dataclass
class Joined:
    """The process of a machine that joins."""

    process: subprocess.Popen[str]
    cache: Path

    @property
    def marker(self) -> str:
        """Return what all processes of its agent carry."""
        [plan] = wait_until(lambda: list(self.cache.glob("ice_notebook/*/plan.json")))
        from ice_notebook.runs.store import RunFolder

        return RunFolder(plan.parent).read_plan().marker

    @property
    def agent(self) -> psutil.Process:
        return psutil.Process(self.process.pid).children()[0]

    def finish(self) -> tuple[int, str]:
        """Return its exit status and what it said."""
        _, said = self.process.communicate(timeout=HANG_S)
        return self.process.returncode, said


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Callable[..., Joined]]:
    """Return `join(run, *arguments)`, which starts a process that joins a run with the command that the run shows."""
    made: list[Joined] = []

    def begin(run: Run, *arguments: str, where: str = "", token: str = "", program: list[str] = JOIN) -> Joined:
        assert run.plan.nodes is not None
        address = where or wait_until(lambda: run.join_command).rpartition(" ")[2]
        cache = tmp_path / f"node{len(made)}"
        process = subprocess.Popen(
            [*program, address, *arguments],
            env={**os.environ, VARIABLE: token or run.plan.nodes.token, "XDG_CACHE_HOME": str(cache)},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        made.append(Joined(process, cache))
        return made[-1]

    yield begin
    for joined in made:
        if joined.process.poll() is None:
            joined.process.kill()
        joined.process.wait()
        assert joined.process.stderr is not None
        joined.process.stderr.close()
        if list(joined.cache.glob("ice_notebook/*/plan.json")):
            wait_until(lambda joined=joined: not left_of(joined.marker), 20)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def meet() -> tuple[int, int, float]:
    """Take part in a sum, and return the node, the world's size and the sum: the task of most tests."""
    import os

    import torch
    import torch.distributed as dist

    total = torch.ones(1) * (int(os.environ["RANK"]) + 1)
    dist.all_reduce(total)
    return int(os.environ["GROUP_RANK"]), dist.get_world_size(), total.item()


def alone_or_wait(path: str) -> tuple[int, int]:
    """Say who is there, and go on until all ranks know that a file is there: one that stopped by itself would fail the others."""
    import os
    import time

    import torch
    import torch.distributed as dist

    print(f"world {dist.get_world_size()} restarts {os.environ['TORCHELASTIC_RESTART_COUNT']}")
    seen = torch.zeros(1)
    while not seen:
        time.sleep(0.05)
        seen = torch.tensor([float(os.path.exists(path))])
        dist.all_reduce(seen, dist.ReduceOp.MAX)
    return int(os.environ["RANK"]), dist.get_world_size()


# ---- two nodes meet ----------------------------------------------------------------------------------------------------------------------


def test_a_function_runs_on_two_nodes_and_all_its_results_are_here(start, join):
    run = start(meet, **BY_VALUE, nnodes=2, master_addr="127.0.0.2")
    wait_until(lambda: run.state.meeting)
    waiting = banner(run.plan, run.state)
    assert waiting is not None
    assert waiting["text"].startswith("Waiting for nodes: 1 of 2 is here. On each other node run:\nICE_NOTEBOOK_TOKEN=")
    assert " python -m ice_notebook join 127.0.0.2:" in waiting["text"]
    other = join(run)
    assert run.wait(HANG_S)
    assert dict(run.results) == {0: (0, 4, 10.0), 1: (0, 4, 10.0), 2: (1, 4, 10.0), 3: (1, 4, 10.0)}, run
    assert [run.state.ranks[rank].node for rank in range(4)] == [0, 0, 1, 1]
    assert [node.n_ranks for node in run.state.nodes.values()] == [2, 2]
    assert repr(run).splitlines()[0] == "Run: succeeded · 4 ranks · cpu:0,1 · restarts 0/0"
    status, said = other.finish()
    assert status == 0, said
    assert "ice_notebook: joined meet() with 2 ranks on cpu:0,1; Ctrl-C leaves it\nice_notebook: the run succeeded\n" in said
    assert left_of(other.marker) == left_of(run.plan.marker) == []
    assert run.join_command == ""
    # Nothing of the run was printed by us but what is above, and nothing that opens doors is left on a disk.
    assert run.plan.nodes is not None
    for path in run.folder.rglob("*"):
        assert path.is_dir() or run.plan.nodes.token.encode() not in path.read_bytes(), path


def test_a_node_may_come_before_the_run_listens_and_a_named_port_is_the_only_one_of_the_store(start, join):
    def ports():
        import os

        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            raise ValueError("once more")
        return int(os.environ["MASTER_PORT"])

    store, meeting = free_port(), free_port()
    run = start(ports, n=1, nnodes=2, master_port=store, rdzv_endpoint=f"127.0.0.1:{meeting}", rdzv_backend="c10d", max_restarts=1)
    assert run.state.meeting is None
    other = join(run, where=f"127.0.0.1:{meeting}")
    assert run.wait(HANG_S)
    assert dict(run.results) == {0: store, 1: store}, run
    assert (run.restarts, len(run.state.attempts)) == (1, 2)
    assert other.finish()[0] == 0


@pytest.mark.parametrize("dist_init", ["no", "auto"])
def test_nothing_listens_but_at_the_named_ports_and_what_gloo_opens(start, join, tmp_path, dist_init):
    def wait(end):
        import os
        import time

        print("in")
        while not os.path.exists(end):
            time.sleep(0.05)

    end, meeting, store = tmp_path / "end", free_port(), free_port()
    run = start(*(wait, str(end)), n=1, nnodes=2, rdzv_endpoint=f"127.0.0.2:{meeting}", master_port=store, dist_init=dist_init)
    other = join(run)
    wait_printed(run, "in", [0, 1])
    listening = listeners([*left_of(run.plan.marker), *left_of(other.marker), other.process.pid])
    ranks = {state.pid for state in run.state.ranks.values()}
    ours = {place for pid, place in listening if pid not in ranks}
    assert ours == {("127.0.0.2", meeting), ("127.0.0.2", store)}
    # gloo's own, on the interface that it is given.
    theirs = {place[0] for pid, place in listening if pid in ranks}
    assert theirs == (set() if dist_init == "no" else {"127.0.0.1"})
    end.touch()
    assert run.wait(HANG_S)
    assert run.phase == "succeeded", run


def listeners(pids: list[int]) -> list[tuple[int, tuple[str, int]]]:
    """Return the TCP ports at which processes listen: pid, address and port."""
    found = psutil.net_connections("tcp")
    return [(each.pid, tuple(each.laddr)) for each in found if each.status == psutil.CONN_LISTEN and each.pid in pids]


def test_large_values_and_all_output_travel(start, join):
    import torch

    weights = torch.arange(8 << 20, dtype=torch.float32)  # 32 MiB

    def work(weights):
        import os

        import torch

        if os.environ["RANK"] == "0":
            return float(weights[-1])
        for number in range(200_000):
            print(f"line {number} of a rank that prints faster than anybody reads")
        return torch.full((64 << 20,), float(weights[-1]))  # 256 MiB

    run = start(work, weights, n=1, nnodes=2, dist_init="no")
    join(run, "--devices", "cpu:0")
    assert run.wait(120)
    last = float((8 << 20) - 1)
    assert run.results[0] == last, run
    assert run.results[1].shape == (64 << 20,)
    assert float(run.results[1][-1]) == last
    lines = run.output(1).splitlines()
    assert len(lines) == 200_000
    assert lines[-1].startswith("line 199999 ")


def test_files_of_redirected_streams_stay_where_their_ranks_are_and_the_node_says_so(start, join):
    def work():
        import os
        import sys

        print("to a file", os.environ["RANK"])
        print("shown", os.environ["RANK"], file=sys.stderr)

    run = start(work, n=1, nnodes=2, redirects="1", dist_init="no")
    other = join(run)
    assert run.wait(HANG_S)
    assert [run.output(rank) for rank in (0, 1)] == ["shown 0\n", "shown 1\n"]
    assert (run.folder / "attempt_0" / "0" / "stdout.log").read_text() == "to a file 0\n"
    assert not (run.folder / "attempt_0" / "1" / "stdout.log").exists()
    said = other.finish()[1]
    [folder] = re.findall(r"ice_notebook: streams that go to files of their own \(redirects, tee\) do so here, in (.*)\n", said)
    assert (Path(folder) / "attempt_0" / "1" / "stdout.log").read_text() == "to a file 1\n"


def test_nodes_may_have_different_numbers_of_ranks(start, join):
    run = start(meet, **BY_VALUE, n=1, nnodes=2)
    join(run, "--nproc-per-node", "2")
    assert run.wait(HANG_S)
    assert dict(run.results) == {0: (0, 3, 6.0), 1: (1, 3, 6.0), 2: (1, 3, 6.0)}, run


# ---- failures ----------------------------------------------------------------------------------------------------------------------------


def test_a_failure_on_another_node_is_the_runs_and_restarts_count_for_both(start, join):
    def work():
        import os

        import torch
        import torch.distributed as dist

        dist.all_reduce(torch.ones(1))
        if os.environ["RANK"] == "1":
            raise ValueError(f"bad loss {os.environ['TORCHELASTIC_RESTART_COUNT']}")
        dist.all_reduce(torch.ones(1))

    run = start(work, n=1, nnodes=2, max_restarts=1)
    other = join(run)
    assert run.wait(HANG_S)
    assert (run.phase, run.restarts, len(run.state.attempts)) == ("failed", 1, 2)
    error = run.exception()
    assert str(error).startswith("rank 1: ValueError: bad loss 1")
    assert any(line.startswith("restart 1: rank 1: ValueError: bad loss 0") for line in error.lines)
    assert isinstance(error.__cause__, ValueError)
    assert 'raise ValueError(f"bad loss' in "\n".join(error.lines)
    status, said = other.finish()
    assert (status, said.splitlines()[-1]) == (1, "ice_notebook: the run failed")


def test_a_needed_node_whose_agent_is_killed_ends_the_run_and_nothing_is_left_of_either(start, join):
    run = start(alone_or_wait, "/no/such/file", **BY_VALUE, n=1, nnodes=2)
    other = join(run)
    wait_printed(run, "world 2", range(2))
    other.agent.kill()
    assert run.wait(HANG_S)
    assert run.phase == "failed"
    assert str(run.exception()).startswith("node 1 (")
    assert str(run.exception()).endswith(" was lost, and 1 node is left of the 2 that the run needs")
    assert left_of(run.plan.marker) == []
    status, said = other.finish()
    assert (status, "the agent ended with signal 9" in said) == (1, True)
    assert left_of(other.marker) == []


def test_nodes_end_when_the_first_one_is_killed(start, join):
    run = start(alone_or_wait, "/no/such/file", **BY_VALUE, n=1, nnodes=2)
    other = join(run)
    wait_printed(run, "world 2", range(2))
    assert run.state.agent_pid is not None
    os.kill(run.state.agent_pid, signal.SIGKILL)
    assert run.wait(HANG_S)
    status, said = other.finish()
    assert (status, "the first node is gone: the run is over" in said) == (1, True)
    assert left_of(other.marker) == left_of(run.plan.marker) == []


# ---- nodes that come and go --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "left"])
def test_a_node_joins_a_running_group_and_goes_again(start, join, tmp_path, how):
    end = tmp_path / "end"
    run = start(alone_or_wait, str(end), **BY_VALUE, n=1, nnodes="1:2", rdzv_configs="last_call_timeout=0")
    wait_printed(run, "world 1 restarts 0", [0])
    other = join(run)
    wait_printed(run, "world 2 restarts 0", range(2), attempt=1)
    assert run.state.attempts[0].ended_by.startswith("node 1 (")
    assert run.state.attempts[0].ended_by.endswith(") joined")
    other.agent.kill() if how == "killed" else other.process.send_signal(signal.SIGINT)
    wait_printed(run, "world 1 restarts 0", [0], attempt=2)
    shown = banner(run.plan, run.state)
    assert shown is not None
    assert "Attempt 3: node 1 (" in shown["text"]
    end.touch()
    assert run.wait(HANG_S)
    assert dict(run.results) == {0: (0, 1)}, run
    assert (run.phase, run.restarts) == ("succeeded", 0)
    gone = "was lost" if how == "killed" else "left"
    lines = repr(run).splitlines()
    assert lines[1].startswith("attempt 2: node 1 (")
    assert lines[2].startswith("attempt 3: node 1 (")
    assert lines[2].endswith(f") {gone}")
    status, said = other.finish()
    assert status == (1 if how == "killed" else 130), said
    assert left_of(other.marker) == []


# ---- stop --------------------------------------------------------------------------------------------------------------------------------


def test_a_run_that_waits_for_a_node_stops_at_once(start):
    run = start(meet, **BY_VALUE, n=1, nnodes=2)
    wait_until(lambda: "waiting for nodes" in (banner(run.plan, run.state) or {"text": ""})["text"].lower())
    run.stop()
    assert run.wait(10)
    assert (run.phase, str(run).splitlines()[1]) == ("stopped", "stopped on request")


def test_a_stop_ends_all_nodes(start, join, tmp_path):
    run = start(alone_or_wait, "/no/such/file", **BY_VALUE, n=1, nnodes=2)
    other = join(run)
    wait_printed(run, "world 2", range(2))
    run.stop()
    assert run.wait(HANG_S)
    assert run.phase == "stopped"
    status, said = other.finish()
    assert (status, said.splitlines()[-1]) == (1, "ice_notebook: the run stopped: stop")
    assert left_of(other.marker) == left_of(run.plan.marker) == []


# ---- who cannot join ---------------------------------------------------------------------------------------------------------------------


def test_who_is_no_node_is_refused_and_blocks_nobody(start, join):
    import torch.distributed as dist

    run = start(meet, **BY_VALUE, n=1, nnodes=2)
    host, port = wait_until(lambda: run.state.meeting)
    silent = [socket.create_connection((host, port)) for _ in range(40)]  # more than may wait
    with socket.create_connection((host, port)) as garbage:
        garbage.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert garbage.recv(1) == b""
    with pytest.raises(dist.DistError):
        dist.TCPStore(host, port, is_master=False, timeout=dt.timedelta(seconds=1))
    assert run.plan.nodes is not None
    from ice_notebook.wire.token import parse_token

    wrong = Token.new(parse_token(run.plan.nodes.token).fingerprint).format()
    status, said = join(run, token=wrong).finish()
    assert (status, f"The run at {host}:{port} does not accept the token." in said) == (2, True), said
    changes = {
        "ice_notebook": "m.hello = lambda: m.p.replace(hello, ours='9.9')",
        "torch": "m.hello = lambda: m.p.replace(hello, torch='9.9')",
        "Python": "m.hello = lambda: m.p.replace(hello, python='9.9')",
    }
    for what, change in changes.items():
        status, said = join(run, program=[sys.executable, "-c", OTHER.format(change=change)]).finish()
        assert (status, f"The run refuses this node: It has {what} 9.9, and the run has " in said) == (2, True), said
    status, said = join(run, "--devices", "cuda:63").finish()
    assert (status, "cuda:63" in said, said.count("\n")) == (2, True, 1), said
    join(run)
    assert run.wait(HANG_S)
    assert dict(run.results) == {0: (0, 2, 3.0), 1: (1, 2, 3.0)}, run
    refused = [line for line in (run.folder / "events.jsonl").read_text().splitlines() if "node_refused" in line]
    for reason in ("beginning of a TLS connection", "It is a torchrun", "does not have the run's token", "It has torch 9.9"):
        assert any(reason in line for line in refused), reason
    for sock in silent:
        sock.close()


def test_a_node_too_many_is_refused(start, join, tmp_path):
    end = tmp_path / "end"
    run = start(alone_or_wait, str(end), **BY_VALUE, n=1, nnodes=2)
    join(run)
    wait_printed(run, "world 2", range(2))
    status, said = join(run).finish()
    assert (status, "The run refuses this node: The run already has 2 nodes, the most it allows." in said) == (2, True), said
    end.touch()
    assert run.wait(HANG_S)
    assert dict(run.results) == {0: (0, 2), 1: (1, 2)}, run


def test_a_run_whose_nodes_do_not_come_says_so(launch):
    run = launch(meet, **BY_VALUE, n=1, nnodes=2, rdzv_configs="join_timeout=0.1")
    assert run.phase == "failed"
    assert str(run.exception()) == "no other node has joined within 0.1 s, and the run needs 2"


def test_a_port_that_is_taken_is_named(launch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = launch(meet, **BY_VALUE, n=1, nnodes=2, rdzv_endpoint=f"127.0.0.1:{port}")
    assert run.phase == "failed"
    assert str(run.exception()).startswith(f"Other nodes cannot join at 127.0.0.1:{port}: Address already in use.")


@pytest.mark.parametrize(
    ("arguments", "token", "sentence"),
    [
        (["127.0.0.1:{port}", "--connect-timeout", "0.1"], "A" * 64, "No run was reached at 127.0.0.1:{port} within 0.1 s"),
        (["127.0.0.1"], "A" * 64, "'127.0.0.1' is not the address of a run: expected HOST:PORT"),
        (["127.0.0.1:{port}"], "short", "The token cannot be read: it is one word of 64 letters"),
        (["127.0.0.1:{port}"], "", "There is no token: put the one that the run shows into ICE_NOTEBOOK_TOKEN"),
        (["127.0.0.1:{port}", "--devices", "gpu9"], "A" * 64, "gpu9"),
        (["--devices", "cpu"], "A" * 64, "There is no address of a run: write the one that the run shows, `join HOST:PORT`."),
        (["127.0.0.1:{port}", "cpu"], "A" * 64, "'cpu' is a word too many: only options follow HOST:PORT"),
        (
            ["127.0.0.1:{port}", "--nproc-per-node", "many"],
            "A" * 64,
            "--nproc-per-node='many' is not valid: expected a whole number",
        ),
        (["--devices=cpu", "127.0.0.1:{port}", "--devices", "cpu"], "A" * 64, "'--devices' is given twice"),
        (["127.0.0.1:{port}", "--nproc-per-nod", "gpu", "--connect-timeout=0.1"], "A" * 64, "No run was reached at"),
    ],
)
def test_what_cannot_be_joined_is_told_in_a_sentence(arguments, token, sentence):
    port = str(free_port())
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [*JOIN, *(argument.replace("{port}", port) for argument in arguments)]
    done: Any = subprocess.run(command, input=f"{token}\n", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert sentence.replace("{port}", port) in done.stderr
    assert done.stderr.count("\n") == 1


# ---- a message of a feature's own ------------------------------------------------------------------------------------------------------------


def conversation() -> tuple[type[Any], type[Any]]:
    """Return two kinds of messages, which are known at both ends and nowhere between."""
    from ice_notebook.wire.messages import Message

    class Question(Message, frozen=True, kw_only=True):
        text: str

    class Answer(Message, frozen=True, kw_only=True):
        text: str

    return Question, Answer


def answer() -> None:
    import threading

    from ice_notebook.rank import control

    question, its_answer = conversation()
    rank, was_asked = control.own(), threading.Event()
    assert rank is not None
    rank.on(question, lambda asked: (rank.tell_kernel(its_answer(text=asked.text.upper())), was_asked.set()))
    rank.tell_kernel(its_answer(text="ask"))
    assert was_asked.wait(HANG_S)


def test_a_message_to_one_rank_of_another_node_and_its_answer_need_nothing_on_the_way(start, join):
    question, its_answer = conversation()
    said: list[tuple[int, str]] = []
    run = start(answer, n=1, **BY_VALUE, nnodes=2)
    run.on(its_answer, lambda rank, heard: said.append((rank, heard.text)))
    other = join(run)
    wait_until(lambda: len(said) == 2)
    for rank in (1, 0):
        run.tell_rank(rank, question(text=f"rank {rank}?"))
    assert run.wait(HANG_S), run
    assert sorted(said) == [(0, "RANK 0?"), (0, "ask"), (1, "RANK 1?"), (1, "ask")]
    assert other.finish()[0] == 0
