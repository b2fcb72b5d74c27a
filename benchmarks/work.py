"""The work that every launcher gets, the same text for all: functions that hold all they need. Runs in the ranks.

A notebook's own launchers get it as the text of a cell; torch's spawn imports this module, because it cannot send a cell's function.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Work = Callable[..., Any]


def note(folder: str, **facts: float) -> None:
    """Leave facts about this rank where the benchmark finds them, whole or not at all."""
    path = Path(folder) / f"{os.environ['RANK']}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(facts))
    partial.rename(path)


def say_line(word):  # type: ignore[no-untyped-def]  # cells look like this
    """Meet the other ranks and print one line: the word, when the function was entered, when the line was printed."""
    import os
    import time

    entered = time.time()
    import torch.distributed as dist

    is_ours = not dist.is_initialized()
    if is_ours:
        dist.init_process_group("gloo")
    dist.barrier()
    print(f"{word} {os.environ['RANK']} {entered:.6f} {time.time():.6f};", flush=True)
    if is_ours:
        dist.destroy_process_group()


def say_line_alone(word):  # type: ignore[no-untyped-def]
    """Print one line without meeting the other ranks."""
    import os
    import time

    entered = time.time()
    print(f"{word} {os.environ['RANK']} {entered:.6f} {time.time():.6f};", flush=True)


def time_stages(word, loaded_at):  # type: ignore[no-untyped-def]
    """Do what `say_line` does, in the group that is there, and return when each of its steps was done. An argument says when it was loaded."""
    import os
    import time

    entered = time.time()
    import torch.distributed as dist

    dist.barrier()
    met = time.time()
    print(f"{word} {os.environ['RANK']} {entered:.6f} {met:.6f};", flush=True)
    return {"loaded": loaded_at, "entered": entered, "met": met, "returned": time.time()}


def return_tensor(sizes):  # type: ignore[no-untyped-def]
    """Return the time of the return and a tensor of so many MiB: `sizes[rank]`, None for 0."""
    import os
    import time

    import torch

    size = sizes[int(os.environ["RANK"])]
    value = torch.ones(size << 18) if size else None
    return time.time(), value


def flood(folder, word, n):  # type: ignore[no-untyped-def]
    """Print n numbered lines of 80 characters."""
    import os
    import time

    from benchmarks.work import note

    rank = os.environ["RANK"]
    begun = time.time()
    for i in range(n):
        print(f"{word} {rank} {i:06d};".ljust(79, "."))
    note(folder, begun=begun, ended=time.time())


def talk(folder, rate, seconds):  # type: ignore[no-untyped-def]
    """Print so many numbered lines a second, each with its time, from when all are told to go. A turn's lines are one `print`."""
    import os
    import time
    from pathlib import Path

    from benchmarks.work import note

    rank = os.environ["RANK"]
    Path(folder, f"{rank}.ready").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.005)
    begun = now = time.time()
    n = 0
    while now < begun + seconds:
        due = int((now - begun) * rate)
        if due > n:
            print("\n".join(f"@{now:.3f} {rank} {i:07d} loss 0.4321 ".ljust(93, ".") for i in range(n, due)), flush=True)
            n = due
        time.sleep(0.01)
        now = time.time()
    note(folder, begun=begun, ended=now, printed=n)


def fail(folder, how):  # type: ignore[no-untyped-def]
    """Have rank 1 fail while rank 0 waits for it in a collective."""
    import os
    import signal
    import time

    import torch
    import torch.distributed as dist

    from benchmarks.work import note

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    dist.barrier()
    if os.environ["RANK"] == "0":
        dist.all_reduce(torch.ones(1))
    time.sleep(1)
    note(folder, at=time.time())
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("-".join(["bad", "loss"]))  # noqa: FLY002 - put together here, so that no copy of this text is taken for the message


def fail_once(word, folder, seconds):  # type: ignore[no-untyped-def]
    """Have rank 1 fail in the first attempt, so many seconds after all have met; print the line of `say_line` in the next one."""
    import os
    import time

    entered = time.time()
    import torch
    import torch.distributed as dist

    from benchmarks.work import note

    is_ours = not dist.is_initialized()
    if is_ours:
        dist.init_process_group("gloo")
    dist.barrier()
    rank = os.environ["RANK"]
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        time.sleep(seconds)
        if rank == "1":
            note(folder, at=time.time())
            raise ValueError("the first attempt")
        dist.all_reduce(torch.ones(1))
    print(f"{word} {rank} {entered:.6f} {time.time():.6f};", flush=True)
    if is_ours:
        dist.destroy_process_group()


def block(folder, how):  # type: ignore[no-untyped-def]
    """Wait for ever: rank 0 in C++, rank 1 in C++ as well or asleep in Python."""
    import os
    import time

    import torch
    import torch.distributed as dist

    from benchmarks.work import note

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    dist.barrier()
    note(folder, pid=os.getpid())
    if os.environ["RANK"] == "0":
        dist.all_reduce(torch.ones(1))
    elif how == "asleep":
        time.sleep(600)
    else:
        dist.recv(torch.ones(1), src=0)
