"""The command line: help, complaints and exit statuses, without starting anything."""

from __future__ import annotations

import subprocess
import sys

import pytest
from histories import History, killed, plan, raised

from ice_notebook import cli, in_terminal
from ice_notebook import protocol as p
from ice_notebook.options import Surface
from ice_notebook.run import Run
from ice_notebook.state import replay
from ice_notebook.store import RunFolder


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    shown = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, shown.out, shown.err


def test_help_names_every_option_and_fits_a_terminal(capsys):
    status, out, err = run(capsys, "launch", "--help")
    assert (status, err) == (0, "")
    for each in cli.TABLE.on(Surface.CLI):
        assert f"--{each.name.replace('_', '-')}" in out
    assert max(map(len, out.splitlines())) <= 100
    assert "-r, --redirects" in out
    assert "-m, --module\n" in out
    assert "--args" not in out


@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["-h"], 0), ([], 2)])
def test_the_program_alone_says_how_it_is_used(capsys, words, status):
    assert run(capsys, *words)[:2] == (status, f"{cli._HELP}\n")


def test_the_version_is_said(capsys):
    assert run(capsys, "--version")[:2] == (0, f"ice_notebook {cli.__version__}\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["lanch"], "'lanch' is not a command; the commands are launch and join. --help says more."),
        (
            ["launch"],
            "Nothing to launch is named: give a script, -m and a module, or --no-python and a program, behind the options.",
        ),
        (["launch", "--nproc", "2", "train.py"], "'nproc' is not an option. Did you mean 'nproc_per_node'?"),
        (
            ["launch", "-m", "--no-python", "x"],
            "module and no_python exclude each other: they say two things of what is launched; give one.",
        ),
        (
            ["launch", "--numa-binding", "node", "x.py"],
            (
                "'numa_binding' is not available in this version: ranks are not bound to processors; launch a program that does it with "
                "no_python, such as numactl."
            ),
        ),
        (["launch", "--max-restarts=x", "t.py"], "max_restarts='x' cannot be read: allowed is a whole number of 0 or more."),
        (["launch", "--devices", "cuda:x", "t.py"], "devices='cuda:x': 'x' is not a device;"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_2(capsys, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith(f"ice_notebook: {sentence}")
    assert err.count("\n") == 1


def test_a_script_that_is_not_right_is_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.py").write_text("x = (\n")
    assert run(capsys, "launch", "wrong.py")[2] == (
        "    x = (\n        ^\nice_notebook: The script 'wrong.py' is not right in line 1: '(' was never closed.\n"
    )


SLOW = (
    "torch",
    "numpy",
    "IPython",
    "ipywidgets",
    "anywidget",
    "ipykernel",
    "traitlets",
    "zmq",
    "asyncio",
    "cryptography",
    "cloudpickle",
)
FOR_LAUNCHES = "psutil", "msgspec", "platformdirs", "ice_notebook.launcher"


@pytest.mark.parametrize(
    ("module", "words", "unwanted"),
    [
        ("ice_notebook.cli", ["--help"], SLOW + FOR_LAUNCHES),
        ("ice_notebook.cli", ["launch", "--help"], SLOW + FOR_LAUNCHES),
        ("ice_notebook.cli", ["launch", "--nproc", "2", "train.py"], SLOW + FOR_LAUNCHES),
        ("ice_notebook.in_terminal", ["launch", "missing.py"], SLOW),  # all that comes before the agent
    ],
)
def test_nothing_is_imported_that_is_not_needed_yet(tmp_path, module, words, unwanted):
    code = f"""
import atexit, sys
atexit.register(lambda: print("imported", *sorted(sys.modules)))
import {module}
from ice_notebook import cli
cli.main({words!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    [imported] = [line.split() for line in done.stdout.splitlines() if line.startswith("imported ")]
    assert module in imported, done.stderr
    assert set(unwanted) & set(imported) == set()


FAILED = p.Outcome.FAILED


@pytest.mark.parametrize(
    ("history", "status"),
    [
        (History().begin().fails(1, raised(exit_code=7)).fails(0, raised(exit_code=9)).exits(0, 9).exits(1, 7).group_fails(1), 7),
        (History().begin().fails(1, killed()).exits(1, -9).group_fails(1), 137),
        (History().begin().fails(0, raised(exit_code=None)).exits(0, 3).group_fails(0), 3),
        (History().begin().fails(0, raised(exit_code=None)).group_fails(0), 1),  # nobody knows its code
        (History().stop("timeout"), 124),
        (History(), 1),  # the agent failed
    ],
)
def test_the_status_is_that_of_the_rank_that_failed_first(tmp_path, history, status):
    run = Run(plan(), RunFolder(tmp_path))
    run._state = replay(history.end(FAILED).events)
    assert in_terminal.status_of_failure(run) == status
