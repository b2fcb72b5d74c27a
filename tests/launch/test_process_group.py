"""The default process group of a rank, how it gives way to the user's own, and the store and sockets that it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from support import HANG_S, wait_until

from ice_notebook.kernel.run import Run


def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.parametrize("group", ["ours", "the user's after ours", "the user's alone"])
def test_a_restart_finds_a_clean_store_after_a_rank_was_killed(launch, group):
    def work():
        import os
        import signal

        import torch
        import torch.distributed as dist

        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        assert dist.is_initialized() == (group != "the user's alone")
        if group != "ours":
            dist.init_process_group("gloo")
        total = torch.ones(1)
        dist.all_reduce(total)
        if attempt < 2 and dist.get_rank() == attempt:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()
        return attempt, total.item()

    run = launch(work, max_restarts=2, dist_init="no" if group == "the user's alone" else "auto")
    assert run.phase == "succeeded", run
    assert dict(run.results) == {0: (2, 2.0), 1: (2, 2.0)}
    roots = [attempt.root for attempt in run.state.attempts]
    assert roots == [0, 1, None], "the killed rank is the cause, not the one whose connection broke"
    assert not Path(run.plan.payload).exists(), "kept for further attempts, gone after the last"


def test_a_group_of_the_users_takes_the_place_of_ours_whatever_way_it_is_made(launch):
    ports = [free_port(), free_port()]

    def work():
        import os

        import torch
        import torch.distributed as dist

        def total():
            value = torch.tensor([float(dist.get_rank() + 1)])
            dist.all_reduce(value)
            return value.item()

        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        found = {"ours": (dist.get_backend(), total())}

        for _ in range(5):
            dist.init_process_group(backend="gloo")
            found.setdefault("again and again", []).append(total())
            dist.destroy_process_group()

        before = dict(os.environ)
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{ports[0]}", rank=rank, world_size=world_size)
        found["tcp"] = total()
        dist.destroy_process_group()
        found["environment stays"] = dict(os.environ) == before and os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True"

        # As the DDP tutorial of torch does it.
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "localhost", str(ports[1])
        from torch.distributed import init_process_group

        init_process_group("gloo", rank=rank, world_size=world_size)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1, bias=False))
        model(torch.full((1, 1), float(rank + 1))).sum().backward()
        found["tutorial"] = (total(), model.module.weight.grad.item())
        return found

    run = launch(work)
    assert run.phase == "succeeded", run
    for found in run.results.values():
        assert found == {
            "ours": ("gloo", 3.0),
            "again and again": [3.0] * 5,
            "tcp": 3.0,
            "environment stays": True,
            "tutorial": (3.0, 1.5),
        }


@pytest.mark.parametrize("dist_init", ["auto", "no"])
def test_accelerate_finds_its_processes(launch, dist_init):
    def work():
        import torch
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        gathered = accelerator.gather(torch.tensor([accelerator.process_index]))
        return accelerator.num_processes, accelerator.device.type, gathered.tolist()

    run = launch(work, dist_init=dist_init)
    assert run.phase == "succeeded", run
    assert list(run.results.values()) == [(2, "cpu", [0, 1])] * 2


def test_nothing_listens_beyond_the_loopback_during_a_run(start, tmp_path):
    gate = tmp_path / "gate"

    def work():
        import os
        import time

        import torch
        import torch.distributed as dist

        dist.all_reduce(torch.ones(1))
        dist.init_process_group("gloo")
        dist.all_reduce(torch.ones(1))
        print("here", flush=True)
        while not os.path.exists(gate):
            time.sleep(0.01)

    run = start(work)
    wait_until(lambda: run.done() or all("here" in run.output(rank) for rank in (0, 1)))
    agent, ranks = run.state.agent_pid, [rank.pid for rank in run.state.ranks.values()]
    listening = {pid: sockets(pid) for pid in (agent, *ranks)}
    gate.touch()
    assert listening[agent], "the store of the ranks"
    assert any(listening[rank] for rank in ranks), "the connections of gloo"
    assert {address for addresses in listening.values() for address in addresses} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert run.wait(HANG_S)


def sockets(pid: int) -> list[str]:
    """Return the addresses at which a process listens, or may be sent something."""
    connections = psutil.Process(pid).net_connections(kind="inet")
    return [connection.laddr.ip for connection in connections if connection.status in {psutil.CONN_LISTEN, psutil.CONN_NONE}]


def test_a_launch_asks_nobody_for_a_host_name(launch, tmp_path):
    """In agent and ranks Python's own questions would hang for good."""
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
            import os, pathlib, socket, time

            folder = pathlib.Path({str(tmp_path)!r})
            (folder / f"patched {{os.getpid()}}").touch()

            def hang(*names, **_):
                (folder / f"asked {{os.getpid()}}").write_text(repr(names))
                time.sleep(600)

            socket.getfqdn = socket.gethostbyaddr = socket.gethostbyname = socket.gethostbyname_ex = hang
        """)
    )

    def work():
        import torch
        import torch.distributed as dist

        dist.all_reduce(torch.ones(1))

    path = os.pathsep.join(entry for entry in (str(tmp_path), os.environ.get("PYTHONPATH")) if entry)
    run = launch(work, env={"PYTHONPATH": path}, start_method="spawn", standby="off")
    assert run.phase == "succeeded", run
    patched = {int(path.name.split()[1]) for path in tmp_path.glob("patched *")}
    assert {run.state.agent_pid, *(rank.pid for rank in run.state.ranks.values())} <= patched
    assert not list(tmp_path.glob("asked *"))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
def test_a_launch_asks_a_name_server_for_no_name_of_this_machine(tmp_path):
    """In a network of its own, with a name server that hears and never answers: C++ that asks is heard as well.

    What torch's TCPStore asks itself cannot be helped: whoever connects to it is described by the name of its peer, ::ffff:127.0.0.1 (2.13),
    which no file of hosts knows.
    """
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import socket, sys, threading

            heard = []
            server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            server.bind(("127.0.0.1", 53))

            def listen():
                while True:
                    question = server.recvfrom(4096)[0]
                    if b"\\x011\\x010\\x010\\x03127\\x07in-addr" not in question:
                        heard.append(question)

            threading.Thread(target=listen, daemon=True).start()

            def work():
                import torch
                import torch.distributed as dist

                total = torch.ones(1)
                dist.all_reduce(total)
                return total.item()

            from ice_notebook import ElasticLauncher

            run = ElasticLauncher("cpu:0-1", ui="none").start(work)
            run.wait(60)
            print(dict(run.results), heard, flush=True)
            threading.Thread(target=socket.gethostbyname, args=["asked.on.purpose"], daemon=True).start()
            while not heard:
                pass
            print("a question is heard", flush=True)
            import os
            os._exit(0)
        """)
    )
    bind = " && ".join(f"mount --bind {tmp_path / name} /etc/{name}" for name in ("hosts", "resolv.conf"))
    command = f"ip link set lo up && {bind} && exec {sys.executable} {program}"
    done = subprocess.run(["unshare", "-mn", "sh", "-c", command], stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["{0: 2.0, 1: 2.0} []", "a question is heard"]


def test_three_launches_at_once_share_nothing(start):
    def work(number):
        import os

        import torch
        import torch.distributed as dist

        total = torch.tensor([number])
        dist.all_reduce(total)
        dist.barrier()
        print("number", number)
        return total.item(), os.environ["MASTER_PORT"], os.environ["ICE_NOTEBOOK_MARKER"].partition(":")[0]

    runs: list[Run] = [start(work, number) for number in (1, 10, 100)]
    assert all(run.wait(2 * HANG_S) for run in runs)
    assert [[value[0] for value in run.results.values()] for run in runs] == [[2, 2], [20, 20], [200, 200]], runs
    assert [run.output(1) for run in runs] == ["number 1\n", "number 10\n", "number 100\n"]
    for index in (1, 2):
        assert len({value[index] for run in runs for value in run.results.values()}) == 3
    assert len({run.folder for run in runs}) == 3
