"""Devices as ranks see them: here CPU ranks; `tests/gpu` has the others."""

from __future__ import annotations

import os

import pytest

from ice_notebook import ElasticLauncher


@pytest.fixture
def look():
    """A function that travels by value: ranks need nothing of this file."""

    def look(launcher):
        import os

        import torch
        import torch.distributed as dist

        total = torch.ones(1, device=launcher.assigned_device)
        dist.all_reduce(total)
        return {
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "assigned": str(launcher.assigned_device),
            "devices": launcher.devices,
            "backend": (launcher.dist_backend, dist.get_backend()),
            "total": total.item(),
            "cuda": torch.cuda.is_initialized(),
        }

    return look


@pytest.mark.parametrize(("devices", "options"), [("cpu:1,0", {}), ("cpu:1,0", {"nproc_per_node": 3})])
def test_cpu_ranks_share_the_cpu_and_leave_the_gpus_of_the_notebook_as_they_are(launch, look, monkeypatch, devices, options):
    visible = "3,5" if options else None
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    names = ("cpu:1", "cpu:0", "cpu:1")[: options.get("nproc_per_node", 2)]
    launcher = ElasticLauncher(devices, **options)
    assert launcher.devices == names, "the same names before the launch"

    run = launch(look, launcher, devices=devices, **options)
    assert run.phase == "succeeded", run
    expected = {
        "visible": visible,
        "assigned": "cpu",
        "devices": names,
        "backend": ("gloo", "gloo"),
        "total": float(len(names)),
        "cuda": False,
    }
    assert dict(run.results) == dict.fromkeys(range(len(names)), expected)
    assert [rank.device for rank in run.state.ranks.values()] == list(names)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible
