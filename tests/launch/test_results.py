"""What comes back from the ranks: when it is there, what stands for what is missing, where it lies and when it goes."""

from __future__ import annotations

import gc
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from disks import mounted, needs_root
from support import HANG_S, Kernel, python, wait_until

from ice_notebook import ElasticLauncher, Run, RunFailed
from ice_notebook.errors import LaunchError, ResultError, RunStopped
from ice_notebook.values import shared_values

MIB = 1 << 20
SHARED_MEMORY = Path("/dev/shm")


# ---- the mapping -----------------------------------------------------------------------------------------------------------------------


def test_values_are_there_as_soon_as_they_are_returned_and_stay_when_another_rank_fails(start, tmp_path):
    gate = tmp_path / "gate"

    def work(launcher):
        import os
        import time

        if launcher.rank == 0:
            return {"rank": 0}
        while not os.path.exists(gate):
            time.sleep(0.01)
        raise LookupError("the other one")

    run = start(work, ElasticLauncher("cpu"), dist_init="no")
    assert run.result(0) == {"rank": 0}, "waits for it"
    assert not run.done()
    results = run.results
    assert (list(results), len(results), 0 in results, 1 in results) == ([0], 1, True, False)
    assert (results.get(1), results.get(1, "none"), results.get(7, "none")) == (None, "none", "none")
    assert ("x" in results, None in results, -1 in results, [] in results) == (False, False, False, False)
    assert results[np.int64(0)] is results[0], "what counts as a number counts"
    for stranger in (2, -1, "0", None, 0.0):
        with pytest.raises(KeyError):
            results[stranger]
    with pytest.raises(KeyError):
        run.result(5)
    with pytest.raises(ResultError, match="Rank 1 has not returned yet"):
        results[1]

    gate.touch()
    with pytest.raises(RunFailed) as caught:
        run.result(1)
    assert caught.value.run is run
    assert type(caught.value.__cause__) is LookupError
    assert run.wait(HANG_S)
    assert run.phase == "failed"
    assert dict(results) == {0: {"rank": 0}}, "the same object shows what has come since"
    assert results[0] is results[0], "loaded once"
    with pytest.raises(RunFailed, match="rank 1: LookupError: the other one"):
        results[1]
    with pytest.raises(TypeError):
        results[0] = 1
    assert repr(results) == "{0: {'rank': 0}}"


def test_a_rank_that_was_stopped_has_no_value_and_the_others_keep_theirs(start):
    def work(launcher):
        import time

        if launcher.rank == 0:
            return "early"
        return time.sleep(600)

    run = start(work, ElasticLauncher("cpu"), dist_init="no")
    assert run.result(0) == "early"
    run.stop()
    with pytest.raises(RunStopped, match="Rank 1 was stopped before it returned"):
        run.result(1)
    assert run.wait(HANG_S)
    assert dict(run.results) == {0: "early"}
    assert run.results.get(1, "none") == "none"


def test_a_value_that_cannot_travel_is_told_by_rank_and_object_and_the_others_arrive(launch):
    def work(launcher):
        import threading

        return {"loss": 0.5, "guard": threading.Lock()} if launcher.rank == 1 else {"loss": 0.25}

    run = launch(work, ElasticLauncher("cpu"), dist_init="no")
    assert run.phase == "succeeded", "the function itself has returned"
    assert run.results[0] == {"loss": 0.25}
    assert 1 not in run.results
    with pytest.raises(ResultError, match=r"^The value returned by rank 1 cannot be sent back: result\['guard'\] is a lock\."):
        run.results[1]
    assert "result['guard'] is a lock" in repr(run)


def test_a_value_that_leaves_the_program_when_it_is_looked_at_costs_neither_the_run_nor_itself(launch):
    def work(launcher):
        class Value:
            what = launcher.rank

            def __repr__(self):
                raise SystemExit(3)

            def _repr_html_(self):
                raise KeyboardInterrupt

            def __reduce__(self):
                if launcher.rank == 1:
                    raise KeyboardInterrupt
                return str, ("arrived",)

        return Value()

    run = launch(work, ElasticLauncher("cpu"), dist_init="no")
    assert run.phase == "succeeded", run
    assert run.results[0] == "arrived"
    assert "rank 0: <repr failed: SystemExit>" in repr(run)
    with pytest.raises(ResultError, match=r"rank 1 cannot be sent back: it is a Value, and pickling it raised KeyboardInterrupt\."):
        run.results[1]


def test_a_value_that_cannot_be_loaded_here_says_so(launch, tmp_path):
    (tmp_path / "only_in_the_rank.py").write_text("class Thing:\n    pass\n")

    def work():
        import os
        import sys

        sys.path.append(os.environ["MODULES"])
        import only_in_the_rank

        return only_in_the_rank.Thing()

    run = launch(work, n=1, dist_init="no", env={"MODULES": str(tmp_path)})
    assert run.phase == "succeeded"
    assert 0 in run.results
    assert run.results.get(0, "none") == "none", "`get` never raises"
    with pytest.raises(
        ResultError, match="The value of rank 0 cannot be loaded here: ModuleNotFoundError: No module named 'only_in_the_rank'"
    ):
        run.results[0]


# ---- tensors ---------------------------------------------------------------------------------------------------------------------------


def resident_mib() -> float:
    return psutil.Process().memory_info().rss / MIB


def test_a_large_tensor_costs_the_pages_that_are_touched_and_views_and_aliases_stay_what_they_are(launch):
    def work(launcher):
        import torch

        big = torch.ones(64 * (1 << 20))  # 256 MiB
        if launcher.rank == 1:
            return big[1000:1010]
        big[5] = 5.0
        model = torch.nn.Linear(2, 2)
        model.tied = model.weight
        return {"big": big, "view": big.view(64, -1)[0, :10], "again": big, "model": model, "turned": torch.arange(6).view(2, 3).T}

    run = launch(work, ElasticLauncher("cpu"))
    assert run.phase == "succeeded", run
    sizes = [run.state.ranks[rank].value.size_bytes for rank in (0, 1)]
    assert 256 * MIB < sizes[0] < 257 * MIB, "what shares memory is written once"
    assert sizes[1] < MIB, "a small view does not drag its storage along"
    assert run.results[1].tolist() == [1.0] * 10

    before = resident_mib()
    value = run.results[0]
    big = value["big"]
    assert big.shape == (64 << 20,)
    assert resident_mib() - before < 16, "nothing is read yet"
    assert big[: 16 << 20].sum() == (16 << 20) + 4  # a quarter of it
    assert 48 < resident_mib() - before < 96
    big[6] = 6.0
    assert value["again"] is big
    assert value["view"].tolist() == [1.0] * 5 + [5.0, 6.0] + [1.0] * 3, "a view of the same memory, which may be written to"
    assert value["model"].tied is value["model"].weight
    assert value["model"].weight.requires_grad
    assert value["turned"].stride() == (1, 3)
    assert value["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]


# ---- where values lie ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Shared memory of 32 MiB."""
    path = tmp_path / "shared memory"
    with mounted(path, 32):
        monkeypatch.setattr(shared_values, "SHARED_MEMORY", path)
        yield path


def files_below(path: Path) -> list[Path]:
    """Return the files below a folder, but for the one by which a folder's owner is known."""
    return sorted(found for found in path.rglob("*") if found.is_file() and found.name != ".owner")


@pytest.mark.root
@needs_root
def test_what_does_not_fit_shared_memory_goes_to_the_run_folder_and_leaves_nothing_behind(launch, small_memory):
    import torch

    sent = torch.ones(12 * MIB // 4)

    def work(launcher):
        import torch
        import torch.distributed as dist

        size = int(sent.sum()) and (20 << 20 if launcher.rank < 2 else 40 << 20)
        value = torch.full((size // 4,), float(launcher.rank))
        dist.barrier()  # both of 20 MiB are written at the same time, and only one finds room
        return value

    run = launch(work, ElasticLauncher("cpu"), n=3)
    assert run.phase == "succeeded", run
    shared = small_memory / Path(run.plan.shared_dir).name
    assert [float(value.mean()) for value in run.results.values()] == [0.0, 1.0, 2.0]
    places = [Path(run.state.ranks[rank].value.path) for rank in range(3)]
    assert places[2] == run.folder / "attempt_0" / "2" / "result"
    assert sum(place.parent == shared for place in places) <= 1
    assert files_below(shared) == sorted(place for place in places if place.parent == shared)
    assert not list(run.folder.rglob("*.part"))


@pytest.mark.root
@needs_root
def test_where_there_is_no_room_at_all_that_rank_has_no_value_and_the_rest_is_whole(launch, small_memory, tmp_path):
    def work(launcher):
        import torch

        return torch.zeros((64 << 20) // 4) if launcher.rank == 1 else torch.zeros((20 << 20) // 4)

    logs = tmp_path / "logs"
    with mounted(logs, 8):
        run = launch(work, ElasticLauncher("cpu"), dist_init="no", log_dir=str(logs))
        assert run.phase == "succeeded", run
        assert run.results[0].shape == ((20 << 20) // 4,)
        with pytest.raises(ResultError, match="The value returned by rank 1 has 64 MiB, and there is no room for it"):
            run.results[1]
        assert [path.name for path in files_below(small_memory)] == ["0.0"]
        assert not [path for path in files_below(run.folder) if "result" in path.name]

        with pytest.raises(ResultError, match="The value returned by rank 0 has 20 MiB, and there is no room for it"):
            run.save()
        assert not [path for path in files_below(run.folder) if "result" in path.name]
        assert run.results[0].shape == ((20 << 20) // 4,), "it is still where it was"


@pytest.mark.root
@needs_root
def test_a_launch_without_room_for_what_it_sends_leaves_nothing_behind(small_memory, tmp_path, cache):
    import torch

    sent = torch.ones((40 << 20) // 4)

    def work():
        return sent.sum()

    logs = tmp_path / "logs"
    with mounted(logs, 8):
        with pytest.raises(LaunchError, match="cannot be written for the ranks: No space left"):
            ElasticLauncher("cpu", ui="none", log_dir=str(logs), start_method="forkserver").start(work)
        assert list(logs.iterdir()) == []
        assert list(small_memory.iterdir()) == []
        assert files_below(cache) == []
        assert list((cache / "ice_notebook").iterdir()) == [], "the link to the folder is gone as well"


def test_a_rank_that_is_killed_while_it_writes_leaves_nothing_that_counts(launch):
    def work():
        import glob
        import os
        import signal
        import threading

        import torch

        value = torch.ones((1 << 30) // 4)
        pattern = f"/dev/shm/ice_notebook-*{os.environ['ICE_NOTEBOOK_RUN_ID']}/0.0*"

        def kill():
            while not any(os.path.getsize(path) for path in glob.glob(pattern)):
                pass
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
        return value

    run = launch(work, n=1)
    assert run.phase == "failed"
    assert run.failures[0].exit_code == -signal.SIGKILL
    assert list(run.results) == []
    with pytest.raises(RunFailed):
        run.results[0]
    shared = Path(run.plan.shared_dir)
    assert not (shared / "0.0").exists()
    assert files_below(shared) == [], "what it had written is memory, and is given back"
    assert not list(run.folder.rglob("*.part"))


# ---- how long values live --------------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, torch
from ice_notebook import ElasticLauncher

def work():
    return torch.arange(1000)

if __name__ == "__main__":
    runs = [ElasticLauncher("cpu", ui="none", dist_init="no").start(work) for _ in range(int(sys.argv[1]))]
    assert all(run.wait(60) for run in runs)
    for run in runs:
        print(run.folder, run.plan.shared_dir, flush=True)
    if len(sys.argv) > 2:
        runs[0].save()
    else:
        sys.stdin.read()  # keeps the runs, until it is killed
"""


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    """The arguments of a Python program that launches."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return [f"import runpy, sys; sys.argv[:] = sys.argv[1:]; runpy.run_path({str(path)!r}, run_name='__main__')", str(path)]


def test_values_go_with_their_kernel_and_saved_ones_are_read_from_the_folder(program):
    done = python(*program, "2", "save").communicate(timeout=2 * HANG_S)
    (saved, saved_values), (lost, lost_values) = (line.split() for line in done[0].splitlines())
    for values in (saved_values, lost_values):
        assert Path(values).parent == SHARED_MEMORY
        assert not Path(values).exists(), "nothing of the run is left on shared memory"

    run = Run.open(saved)
    assert run.phase == "succeeded"
    assert run.results[0].tolist() == list(range(1000))
    assert repr(run).startswith("Run: succeeded")

    run = Run.open(lost)
    assert run.phase == "succeeded"
    assert (list(run.results), 0 in run.results, run.results.get(0, "gone")) == ([], False, "gone")
    with pytest.raises(ResultError, match=r"The value of rank 0 was not kept.*run\.save\(\)"):
        run.results[0]
    with pytest.raises(ResultError, match="is not the folder of a run"):
        Run.open(Path(saved).parent)


def test_a_kernel_that_is_shut_down_leaves_no_values(kernel: Kernel):
    outcome = kernel.run("%%elastic_launch devices=cpu dist_init=no -o run\nimport torch\ntorch.arange(1000)")
    assert not outcome.error, outcome.error
    values = Path(kernel.value("run.plan.shared_dir"))
    assert [path.name for path in files_below(values)] == ["0.0"]
    process = psutil.Process(kernel.pid)
    kernel.client.shutdown()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    assert not values.exists()


def test_the_next_launch_removes_the_values_of_a_kernel_that_was_killed(program):
    kernel = python(*program, "1", stdin=subprocess.PIPE)
    assert kernel.stdout is not None
    folder, values = kernel.stdout.readline().split()
    kernel.kill()
    kernel.wait()
    assert Path(values).is_dir(), "nobody was there to remove them"

    output, errors = python(*program, "1", "save").communicate(timeout=2 * HANG_S)
    assert output, errors
    assert not Path(values).exists()
    assert Run.open(folder).phase == "succeeded", "the run itself is still there to be read"


def test_values_live_as_long_as_their_run_and_what_was_loaded_lives_longer(cache):
    def work():
        import torch

        return torch.arange(100_000)

    run = ElasticLauncher("cpu", ui="none", dist_init="no", start_method="forkserver").start(work)
    assert run.wait(HANG_S)
    values = Path(run.plan.shared_dir)
    loaded = run.results[0]
    folder = run.save()
    assert values.is_dir()
    del run
    wait_until(lambda: gc.collect() is not None and not values.exists())
    assert int(loaded.sum()) == 4999950000
    assert int(Run.open(folder).results[0].sum()) == 4999950000
