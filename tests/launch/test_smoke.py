"""The main job from Python: a function on two ranks, its output, its values."""

from __future__ import annotations


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
