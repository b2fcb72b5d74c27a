"""The main job from Python: a function on two ranks, its output, its values."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import wait_printed, wait_until

START_METHOD = "spawn"  # see conftest.py


def test_every_rank_prints_and_returns(launch):
    def work():
        import os

        import torch
        import torch.distributed as dist

        total = torch.ones(2) * (int(os.environ["RANK"]) + 1)
        dist.all_reduce(total)
        print("total", total.tolist())
        return total

    run = launch(work)
    assert run.phase == "succeeded", run
    assert [value.tolist() for value in run.results.values()] == [[3.0, 3.0], [3.0, 3.0]]
    assert run.output(1) == "total [3.0, 3.0]\n"


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this system does not divide processors among sessions")
def test_ranks_weigh_together_what_one_session_weighs(start):
    def work() -> None:
        import time

        print("in")
        time.sleep(10_000)

    run = start(work, n=3, dist_init="no")
    wait_printed(run, "in")
    for rank in run.state.ranks.values():
        wait_until(lambda rank=rank: Path(f"/proc/{rank.pid}/autogroup").read_text().split()[-1] == "5")  # 1.25 ** 5 = 3.05
