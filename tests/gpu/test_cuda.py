"""Ranks on GPUs. Skipped where torch finds fewer than a test needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support import HANG_S, end_all

from ice_notebook import ElasticLauncher
from ice_notebook.devices.machine import inventory
from ice_notebook.kernel.run import Run

pytestmark = pytest.mark.gpu


def n_gpus() -> int:
    return len(inventory().visible)  # this process's CUDA stays untouched


needs_one = pytest.mark.skipif(n_gpus() < 1, reason="needs a CUDA device")
needs_two = pytest.mark.skipif(n_gpus() < 2, reason="needs two CUDA devices")


@pytest.fixture
def launch() -> Iterator[Any]:
    """Return `launch(devices, function, *args, **options)`, which waits for the end of the run and never raises for it."""
    runs: list[Run] = []

    def begin_and_wait(devices: str, function: Any, *args: Any, **options: Any) -> Run:
        run = ElasticLauncher(devices, ui="none", **options).start(function, *args)
        runs.append(run)
        assert run.wait(2 * HANG_S)
        return run

    yield begin_and_wait
    end_all(runs)


@pytest.fixture
def look():
    """A function that travels by value: ranks need nothing of this file."""

    def look(launcher):
        import os

        import torch
        import torch.distributed as dist

        device = launcher.assigned_device
        total = torch.full((3,), float(launcher.rank + 1), device=device)
        dist.all_reduce(total)
        return {
            "visible": os.environ["CUDA_VISIBLE_DEVICES"].split(","),
            "count": torch.cuda.device_count(),
            "current": torch.cuda.current_device(),
            "assigned": str(device),
            "local rank": launcher.local_rank,
            "uuid": f"GPU-{torch.cuda.get_device_properties(device).uuid}",
            "backend": dist.get_backend(),
            "total": total,
        }

    return look


@needs_one
def test_one_gpu_is_masked_made_current_and_its_tensors_come_back_on_the_cpu(launch, look):
    gpu = inventory().visible[0]
    run = launch("cuda:0", look, ElasticLauncher("cpu"))
    assert run.phase == "succeeded", run
    found = run.results[0]
    total = found.pop("total")
    assert (str(total.device), total.tolist()) == ("cpu", [1.0] * 3)
    assert found == {
        "visible": [gpu.uuid],
        "count": 1,
        "current": 0,
        "assigned": "cuda:0",
        "local rank": 0,
        "uuid": gpu.uuid,
        "backend": "gloo" if gpu.is_mig else "nccl",
    }


@needs_two
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_every_rank_sees_the_chosen_gpus_in_order_and_its_local_rank_is_its_device(launch, look, order):
    chosen = [inventory().visible[i] for i in order]
    run = launch(f"cuda:{order[0]},{order[1]}", look, ElasticLauncher("cpu"))
    assert run.phase == "succeeded", run
    for rank, found in run.results.items():
        assert found["visible"] == [gpu.uuid for gpu in chosen]
        assert (found["count"], found["current"], found["assigned"], found["uuid"]) == (2, rank, f"cuda:{rank}", chosen[rank].uuid)
        assert found["total"].tolist() == [3.0] * 3


@needs_one
def test_ranks_that_share_a_gpu_meet_by_gloo(launch, look):
    run = launch("cuda:0,0", look, ElasticLauncher("cpu"))
    assert run.phase == "succeeded", run
    assert [found["backend"] for found in run.results.values()] == ["gloo", "gloo"]
    assert [found["assigned"] for found in run.results.values()] == ["cuda:0", "cuda:0"]
    assert [found["total"].tolist() for found in run.results.values()] == [[3.0] * 3] * 2


@needs_one
def test_a_notebook_that_uses_cuda_can_launch_and_its_tensors_arrive_on_the_assigned_device(launch):
    import torch

    model = torch.nn.Linear(4, 2).cuda()
    batch = torch.arange(8.0).view(2, 4).cuda()
    expected = model(batch).detach().cpu()  # before the memory is counted: the first product allocates a workspace
    before = torch.cuda.memory_allocated()
    assert before > 0

    def work(launcher):
        out = model(batch)
        assert out.device == model.weight.device == batch.device == launcher.assigned_device
        return {"out": out, "weight": model.weight, "view": batch[:, 1]}

    run = launch("cuda:0", work, ElasticLauncher("cpu"))
    assert run.phase == "succeeded", run
    value = run.results[0]
    assert {tensor.device.type for tensor in value.values()} == {"cpu"}
    assert torch.allclose(value["out"], expected, atol=1e-5)
    assert value["weight"].requires_grad
    assert value["view"].tolist() == [1.0, 5.0]
    assert torch.cuda.memory_allocated() == before, "nothing of it came back to the notebook's GPU"
    assert torch.ones(1, device="cuda").item() == 1.0


@needs_one
def test_cpu_ranks_refuse_a_tensor_on_a_gpu_by_name(cache):
    import torch

    from ice_notebook.errors import PayloadError

    weights = torch.ones(2, device="cuda")

    def work():
        return weights

    with pytest.raises(
        PayloadError, match="`weights` cannot be sent to the ranks: it is a tensor on cuda:0, and the ranks are CPU ranks"
    ):
        ElasticLauncher("cpu", ui="none").start(work)
    assert not list(cache.rglob("*"))


@needs_one
def test_a_launch_from_a_notebook_that_has_not_used_cuda_leaves_it_so(launch, tmp_path):
    from support import python

    program = python(
        "import sys; from ice_notebook import ElasticLauncher\n"
        "def work(launcher):\n    import torch\n    return torch.ones(1, device=launcher.assigned_device)\n"
        "run = ElasticLauncher('cuda:0', ui='none').start(work, ElasticLauncher('cpu'))\n"
        "assert run.wait(120)\n"
        "print(run.phase.value, 'torch' in sys.modules)\n"
        "value = run.results[0]\nimport torch\nprint(value.item(), torch.cuda.is_initialized())"
    )
    output, errors = program.communicate(timeout=3 * HANG_S)
    assert output.split() == ["succeeded", "False", "1.0", "False"], errors
