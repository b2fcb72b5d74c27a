"""`ElasticLauncher` from Python: the calls that ice-learn's documents show, plain scripts, and IPython in a terminal."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ice_notebook import ElasticLauncher, RunFailed, get_current_launcher
from ice_notebook.errors import CellError, DeviceError, FrozenError, OptionError


def run_script(path: Path, text: str, *command: str) -> subprocess.CompletedProcess[str]:
    path.write_text(textwrap.dedent(text))
    return subprocess.run(
        [*(command or (sys.executable,)), str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_the_older_documents_example_works_as_a_plain_script(tmp_path: Path):
    done = run_script(
        tmp_path / "older.py",
        """
        import os
        from ice_notebook import ElasticLauncher

        def run(args):
            local_rank = int(os.environ["LOCAL_RANK"])
            print(local_rank, args)

        if __name__ == "__main__":
            launch = ElasticLauncher()
            launch['nproc_per_node'] = 2
            launch.freeze()
            launch(run, "blabla")
        """,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("[")) == ["[0] 0 blabla", "[1] 1 blabla"]


def test_the_newer_documents_example_works_as_a_plain_script(tmp_path: Path):
    done = run_script(
        tmp_path / "newer.py",
        """
        from ice_notebook import ElasticLauncher

        def worker(launcher):
            print("rank", launcher.rank)
            print("local_rank", launcher.local_rank)
            print("device", launcher.assigned_device)

        if __name__ == "__main__":
            launcher = ElasticLauncher("cpu:0-1").freeze()
            launcher(worker, launcher)
        """,
    )
    assert done.returncode == 0, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("["))
    assert lines == ["[0] device cpu", "[0] local_rank 0", "[0] rank 0", "[1] device cpu", "[1] local_rank 1", "[1] rank 1"]


def test_a_script_that_fails_ends_with_one_readable_failure(tmp_path: Path):
    done = run_script(
        tmp_path / "failing.py",
        """
        from ice_notebook import ElasticLauncher

        def work():
            raise ValueError("bad loss")

        ElasticLauncher("cpu", ui="none", start_method="forkserver")(work)
        """,
    )
    assert done.returncode == 1
    assert "ice_notebook.errors.RunFailed: rank 0: ValueError: bad loss (failing.py, line 5)" in done.stderr
    assert "ChildFailedError" not in done.stderr


def test_ipython_in_a_terminal_shows_lines_and_has_the_magic(tmp_path: Path):
    done = run_script(
        tmp_path / "session.ipy",
        """
        %load_ext ice_notebook
        get_ipython().run_cell_magic("elastic_launch", "devices=cpu:0-1 -o run", "print('hello')\\nlauncher.rank * 3")
        print(dict(run.results))
        """,
        sys.executable,
        "-m",
        "IPython",
        "--no-banner",
        "--simple-prompt",
        "--colors=NoColor",
    )
    assert done.returncode == 0, done.stderr
    assert "[0] hello" in done.stdout
    assert "[1] hello" in done.stdout
    assert "{0: 0, 1: 3}" in done.stdout


def test_start_returns_at_once_and_result_waits(start, tmp_path: Path):
    gate = tmp_path / "gate"

    def work():
        import time

        while not gate.exists():
            time.sleep(0.01)
        return "through"

    run = start(work, n=1)
    assert not run.done()
    assert not run.wait(timeout=0)
    gate.touch()
    assert run.result() == "through"
    assert run.wait()
    assert (run.phase, run.restarts, run.world_size, dict(run.failures)) == ("succeeded", 0, 1, {})


def test_a_call_raises_for_a_failure_and_the_error_has_the_run():
    def work():
        raise KeyError("missing")

    with pytest.raises(RunFailed) as caught:
        ElasticLauncher("cpu", ui="none", start_method="forkserver")(work)
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.run.phase == "failed"
    assert caught.value.run.done()


# ---- what needs no rank


def test_options_are_set_by_item_until_frozen():
    launcher = ElasticLauncher("cpu:0-1", tee=3)
    launcher["max-restarts"] = 2
    launcher.update({"role": "trainer"}, grace=1)
    assert launcher.freeze() is launcher
    assert launcher.freeze() is launcher
    assert (launcher["max_restarts"], launcher.max_restarts, launcher["role"], launcher["tee"]) == (2, 2, "trainer", 3)
    with pytest.raises(FrozenError, match="'max_restarts' cannot be set: the launcher is frozen"):
        launcher["max_restarts"] = 3
    other = launcher.clone()
    other["max_restarts"] = 3
    assert (other["max_restarts"], launcher["max_restarts"]) == (3, 2)
    assert repr(ElasticLauncher("cpu:0-1", max_restarts=2)) == "ElasticLauncher(devices='cpu:0,1', max_restarts=2)"


def test_a_wrong_option_is_refused_where_it_is_given():
    launcher = ElasticLauncher()
    with pytest.raises(OptionError, match="Did you mean 'max_restarts'"):
        launcher["max_restart"] = 1
    with pytest.raises(DeviceError):
        launcher["devices"] = "cudabanana"
    with pytest.raises(OptionError):
        ElasticLauncher("cpu", max_restarts=-1)


def test_arguments_that_the_function_does_not_take_are_refused_before_anything_starts():
    def work(a, b):
        return a + b

    launcher = ElasticLauncher("cpu", ui="none")
    with pytest.raises(CellError, match="`work` does not take these arguments: missing a required argument: 'b'"):
        launcher(work, 1)
    with pytest.raises(CellError, match="Expected a function to launch, got an int"):
        launcher(3)


def test_outside_ranks_a_launcher_answers_as_rank_0_of_1():
    for launcher in (get_current_launcher(), ElasticLauncher("cpu:0-1")):
        ranks = (launcher.rank, launcher.local_rank, launcher.group_rank, launcher.role_rank)
        sizes = (launcher.world_size, launcher.local_world_size, launcher.group_world_size, launcher.role_world_size)
        assert (ranks, sizes) == ((0,) * 4, (1,) * 4)
        assert launcher.eager_mode
        assert launcher.restart_count == 0
        assert launcher.assigned_device.type in {"cpu", "cuda"}
    assert ElasticLauncher("cpu:0-1").devices == ("cpu:0", "cpu:1")
    assert ElasticLauncher("cpu:0-1").dist_backend == "gloo"
