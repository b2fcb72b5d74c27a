"""What GPUs do and for whom: the driver's answers and its refusals, processes and runs, free or not."""

from __future__ import annotations

import os
from types import SimpleNamespace

import msgspec
import pytest
from fake_run import make_plan
from support import python

from ice_notebook.devices import holders
from ice_notebook.devices.holders import Holder, Use, Whose, find_holder, held, uses_from_readings
from ice_notebook.devices.machine import Gpu
from ice_notebook.devices.readings import GpuProcess, Reading, read_now
from ice_notebook.host import processes
from ice_notebook.host.identities import identity_of, own_identity
from ice_notebook.runs import store, upkeep
from ice_notebook.runs.store import RunFolder
from ice_notebook.wire import protocol as p

GIB = 1 << 30
BOARD = Gpu(uuid="GPU-0", name="NVIDIA H200", memory_bytes=139 * GIB, board=0)
INSTANCE = Gpu(uuid="MIG-3", name="NVIDIA H200 MIG 1g.18gb", memory_bytes=16 * GIB, board=1, instance=3)


class NvmlError(Exception):
    pass


class FakeNvml:
    """The part of pynvml that is used. `refused` are the names of functions that answer with an error."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = 0
    nvmlMemory_v2 = 2

    def __init__(self, *refused):
        self.refused, self.is_open = set(refused), False

    def __getattribute__(self, name):
        if name.startswith("nvmlDevice") or name == "nvmlInit":
            if name in object.__getattribute__(self, "refused"):

                def refuse(*_):
                    raise NvmlError("Not Supported")

                return refuse
        return object.__getattribute__(self, name)

    def nvmlInit(self):
        self.is_open = True

    def nvmlShutdown(self):
        self.is_open = False

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetHandleByIndex(self, board):
        return f"GPU-{board}"

    def nvmlDeviceGetMemoryInfo(self, handle, version=1):
        if version == 2 and "version 2" in self.refused:
            raise NvmlError("Function Not Found")
        return SimpleNamespace(used=61 * GIB + (615 << 20 if version == 1 else 0))

    def nvmlDeviceGetUtilizationRates(self, handle):
        if handle.startswith("MIG"):
            raise NvmlError("Not Supported")
        return SimpleNamespace(gpu=38)

    def nvmlDeviceGetTemperature(self, handle, sensor):
        assert handle.startswith("GPU"), "the board's"
        return 41

    def nvmlDeviceGetPowerUsage(self, handle):
        return 120_500

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return 700_000

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle):
        return [SimpleNamespace(pid=4711, usedGpuMemory=60 * GIB), SimpleNamespace(pid=4712, usedGpuMemory=None)]


FULL = Reading(61 * GIB, 38, 41, 120.5, 700.0, (GpuProcess(4711, 60 * GIB), GpuProcess(4712)))


# ---- readings


def test_a_board_is_read_whole_and_the_driver_is_closed_again():
    nvml = FakeNvml()
    assert read_now([BOARD], nvml) == {"GPU-0": FULL}
    assert not nvml.is_open


def test_an_instance_has_the_temperature_and_the_power_of_its_board_and_no_load():
    reading = read_now([INSTANCE], FakeNvml())["MIG-3"]
    assert (reading.load_percent, reading.temperature_c, reading.power_w) == (None, 41, 120.5)


@pytest.mark.parametrize(
    ("refused", "lost"),
    [
        ("nvmlDeviceGetMemoryInfo", {"memory_used_bytes": None}),
        ("nvmlDeviceGetUtilizationRates", {"load_percent": None}),
        ("nvmlDeviceGetTemperature", {"temperature_c": None}),
        ("nvmlDeviceGetPowerUsage", {"power_w": None}),
        ("nvmlDeviceGetEnforcedPowerLimit", {"power_limit_w": None}),
        ("nvmlDeviceGetComputeRunningProcesses_v3", {"processes": None}),
    ],
)
def test_what_a_driver_refuses_to_say_is_none_and_the_rest_is_there(refused, lost):
    fields = {name: getattr(FULL, name) for name in FULL.__dataclass_fields__}
    assert read_now([BOARD], FakeNvml(refused))["GPU-0"] == Reading(**{**fields, **lost})


def test_an_older_driver_counts_its_own_memory_too():
    assert read_now([BOARD], FakeNvml("version 2"))["GPU-0"].memory_used_bytes == 61 * GIB + (615 << 20)


@pytest.mark.parametrize("nvml", ["this machine has no NVIDIA driver", FakeNvml("nvmlInit"), FakeNvml("nvmlDeviceGetHandleByUUID")])
def test_without_a_driver_or_a_gpu_nothing_is_known(nvml):
    assert read_now([BOARD], nvml) == {"GPU-0": Reading()}


def test_the_functions_that_are_asked_are_there_in_pynvml():
    pynvml = pytest.importorskip("pynvml")
    asked = {name for name in vars(FakeNvml) if name.startswith("nvml")} | {"NVML_TEMPERATURE_GPU", "nvmlMemory_v2"}
    assert asked <= set(dir(pynvml))


# ---- whose a process is


@pytest.fixture
def sleeper():
    """Start a process that has a file open as processes on a GPU have; the name of its device is a link target, nothing more."""
    started = []

    def start(*, opens="/dev/null", marker=""):
        code = f"import sys; file = open({opens!r}); print('up', flush=True); sys.stdin.read()"
        environment = {**os.environ, processes.MARKER: f"{marker}:1"} if marker else dict(os.environ)
        process = python(code, stdin=-1, env=environment)
        assert process.stdout.readline() == "up\n"
        started.append(process)
        return process.pid

    yield start
    for process in started:
        process.stdin.close()
        process.stdout.close()
        process.stderr.close()
        process.wait(10)


@pytest.fixture
def all_use_a_gpu(monkeypatch):
    monkeypatch.setattr(holders, "_target", lambda path: "/dev/nvidia0")


def test_this_process_is_this_notebook():
    assert find_holder(GpuProcess(os.getpid(), 5), {}) == Holder(Whose.NOTEBOOK, os.getpid(), 5)


def test_a_process_with_the_marker_of_a_run_is_of_that_run(sleeper, all_use_a_gpu):
    pid = sleeper(marker="abc")
    assert find_holder(GpuProcess(pid), {"abc": "train(launcher)"}) == Holder(Whose.RUN, pid, run="train(launcher)")
    assert str(find_holder(GpuProcess(pid, 2 * GIB), {})) == "your run (2 GiB)"


def test_another_process_has_a_user_and_a_command(sleeper, all_use_a_gpu):
    holder = find_holder(GpuProcess(sleeper(), 61 * GIB), {})
    assert holder.whose is Whose.USER
    assert holder.user
    assert holder.command.startswith("python")
    assert str(holder) == f"{holder.user} ({holder.command}, 61 GiB)"


def test_a_number_that_means_nobody_here_is_another_user_or_container():
    assert str(find_holder(GpuProcess(2**22 + 5, GIB), {})) == "another user or container (1 GiB)"


def test_a_number_of_another_namespace_is_not_taken_for_the_process_that_has_it_here(sleeper):
    assert find_holder(GpuProcess(sleeper()), {}).whose is Whose.UNKNOWN


def test_whose_files_cannot_be_seen_is_believed(monkeypatch):
    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(holders.os, "listdir", refuse)
    assert holders._uses_a_gpu(1)


def test_the_marker_is_read_without_its_serial(sleeper):
    assert processes.marker_of(sleeper(marker="abc")) == "abc"
    assert processes.marker_of(sleeper()) is None
    assert processes.marker_of(2**22 + 5) is None


# ---- free or not

TRAIN = Holder(Whose.RUN, 1, 50 * GIB, run="train(launcher)")
ALICE = Holder(Whose.USER, 2, 61 * GIB, user="alice", command="python")
HIDDEN = Holder(Whose.UNKNOWN, 3, GIB)
OWN = Holder(Whose.NOTEBOOK, 4, GIB)


def reading(used_gib=0.0, processes=()):
    return Reading(memory_used_bytes=int(used_gib * GIB), processes=processes)


@pytest.mark.parametrize(
    ("use", "obstacles"),
    [
        (Use(reading()), []),
        (Use(reading(6.9)), []),
        (Use(reading(7)), ["7 GiB of 139 GiB in use by who cannot be seen from here"]),
        (Use(reading(1), (OWN,)), []),
        (Use(reading(9), (OWN,)), ["this notebook (1 GiB)"]),
        (Use(reading(1), (ALICE,)), ["alice (python, 61 GiB)"]),
        (Use(reading(1), (HIDDEN, OWN)), ["another user or container (1 GiB)"]),
        (Use(reading(50), (TRAIN,), ("train(launcher)",)), ["your run train(launcher)"]),
        (Use(reading(50), (TRAIN, ALICE), ("train(launcher)",)), ["your run train(launcher)", "alice (python, 61 GiB)"]),
        (Use(reading(50), (TRAIN,)), ["your run train(launcher) (50 GiB)"]),
        (Use(reading(), (), ("train(launcher)",)), ["your run train(launcher)"]),
        (Use(Reading(processes=())), []),
        (Use(Reading(memory_used_bytes=0)), []),
        (Use(Reading()), ["the driver does not say"]),
    ],
)
def test_a_gpu_is_free_when_nobody_else_computes_on_it_and_hardly_any_memory_is_used(use, obstacles):
    assert use.obstacles(139 * GIB) == obstacles


def test_a_board_without_memory_of_its_own_is_judged_by_its_processes():
    assert Use(reading(50)).obstacles(0) == []
    assert Use(reading(50), (ALICE,)).obstacles(0) == ["alice (python, 61 GiB)"]
    assert Use(Reading(memory_used_bytes=1)).obstacles(0) == ["the driver does not say"]


# ---- runs of ours


def with_gpus(*uuids, **changes):
    plan = make_plan(len(uuids), device="cuda", marker="abc", **changes)
    ranks = tuple(p.replace(rank, visible_devices=",".join(uuids)) for rank in plan.ranks)
    return p.replace(plan, ranks=ranks)


def test_a_run_has_its_gpus_from_before_its_first_process():
    uses = uses_from_readings({"GPU-0": reading(), "GPU-1": reading()}, [with_gpus("GPU-1", name="train(launcher)")])
    assert [use.runs for use in uses.values()] == [(), ("train(launcher)",)]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write the folder of a run, as a launch does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def write(*, kernel=None, events=(), **changes):
        run_id = store.new_run_id()
        folder = RunFolder.create(run_id)
        folder.write_plan(with_gpus("GPU-0", run_id=run_id, folder=str(folder.path), **changes))
        owner = (kernel and identity_of(kernel)) or msgspec.structs.replace(own_identity(), pid=kernel or os.getpid())
        folder.owner_file.write_bytes(p.encode(p.Owner(process=owner, is_locked=False)))
        with folder.open_journal() as journal:
            for event in events:
                journal.append(event)
        return folder

    return write


BEGUN = p.RunBegun(at=1.0, agent=own_identity())
ENDED = p.RunEnded(at=2.0, outcome=p.Outcome.SUCCEEDED)


def test_runs_that_have_not_ended_are_found_with_those_of_other_notebooks(written, sleeper):
    written(name="ended", events=[BEGUN, ENDED])
    written(name="just made")
    written(name="of another notebook", kernel=sleeper(), events=[BEGUN])
    written(name="left behind", kernel=2**22 + 5, events=[BEGUN])
    (store.cache_dir() / "no-run").mkdir()
    assert sorted(plan.name for plan in upkeep.live_plans()) == ["just made", "of another notebook"]


def test_a_gpu_of_a_run_that_just_starts_is_held(written, monkeypatch):
    written(name="train(launcher)")
    monkeypatch.setattr(holders, "read_now", lambda gpus: {gpu.uuid: reading() for gpu in gpus})
    other = Gpu(uuid="GPU-1", name="NVIDIA H200", memory_bytes=139 * GIB, board=1)
    assert held([BOARD, other]) == {"GPU-0": "your run train(launcher)"}
