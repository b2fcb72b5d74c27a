"""What GPUs do and for whom, on real ones. Skipped where there is none."""

from __future__ import annotations

import os

import pytest
from support import HANG_S, wait_printed, wait_until

from ice_notebook import DevicePicker, ElasticLauncher
from ice_notebook.devices import holders
from ice_notebook.devices.machine import inventory
from ice_notebook.devices.readings import read_now
from ice_notebook.errors import DeviceError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not inventory().visible, reason="needs a CUDA device")]
GIB = 1 << 30


@pytest.fixture
def held():
    """A run that holds 2 GiB of the first GPU until the test is over."""

    def hold(launcher):
        import time

        import torch

        kept = torch.ones(2 << 28, device=launcher.assigned_device)
        print("holding", kept.numel(), flush=True)
        time.sleep(600)

    run = ElasticLauncher("cuda:0", ui="none", dist_init="no").start(hold)
    wait_printed(run, "holding")
    yield run
    run.kill()
    assert run.wait(HANG_S)


def test_a_gpu_is_read_without_becoming_one_of_its_users():
    gpu = inventory().visible[0]
    reading = read_now([gpu])[gpu.uuid]
    assert reading.memory_used_bytes is not None
    assert 0 <= reading.memory_used_bytes <= gpu.memory_bytes
    assert os.getpid() not in [process.pid for process in reading.processes or ()]
    assert not any(
        os.path.exists(f"/proc/self/fd/{fd}") and "nvidia-uvm" in os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
    )


def test_a_gpu_of_a_run_is_yours_and_not_free(held):
    gpu = inventory().visible[0]
    use = holders.look([gpu])[gpu.uuid]
    assert use.reading.memory_used_bytes >= 2 * GIB
    assert use.runs == (held.plan.name,)
    assert holders.held([gpu])[gpu.uuid].startswith(f"your run {held.plan.name}")
    others = len(inventory().visible)
    with pytest.raises(DeviceError, match=f"cuda:0: your run {held.plan.name}"):
        _ = ElasticLauncher(f"cuda:free:{others}").devices


def test_a_picker_shows_it_and_it_is_free_again_after_the_run(held):
    picker = DevicePicker()
    assert picker.state["gpus"][0]["status"] == "yours"
    held.kill()
    assert held.wait(HANG_S)

    def is_given_back():
        picker.refresh()
        return picker.state["gpus"][0]["status"] != "yours" and not picker.state["gpus"][0]["runs"]

    wait_until(is_given_back, 10)
    picker.close()
