"""The command line: help, complaints and exit statuses, without starting anything."""

from __future__ import annotations

import subprocess
import sys

import pytest
from histories import History, killed, plan, raised

from ice_notebook.kernel.run import Run
from ice_notebook.options.table import Surface
from ice_notebook.runs.state import replay
from ice_notebook.runs.store import RunFolder
from ice_notebook.ui import cli, in_terminal
from ice_notebook.wire import protocol as p


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    shown = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, shown.out, shown.err


@pytest.mark.parametrize("width", [50, 80, 100, 300])
def test_help_names_every_option_and_fits_a_terminal(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    status, out, err = run(capsys, "launch", "--help")
    assert (status, err) == (0, "")
    for each in cli.TABLE.on(Surface.CLI):
        name = "rdzv-conf" if each.name == "rdzv_configs" else each.name.replace("_", "-")
        assert f"--{name}" in out
    assert max(map(len, out.splitlines())) <= min(width, 100)
    assert "-r, --redirects" in out
    assert "-m, --module\n" in out
    assert "--args" not in out
    assert "-h and --help" in " ".join(out.split())
    assert "DEVICES is auto, cpu, cuda or a list of them" in " ".join(out.split())


def test_the_help_of_a_terminal_speaks_of_terminals(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = " ".join(run(capsys, "launch", "--help")[1].split())
    for word in ("notebook ", "panel", "token", "cell", "kernel", "widget", "_ranks_", "join with the command"):
        assert word not in text.replace("ice_notebook", ""), text.partition(word)
    names = [each.name for each in cli.TABLE if "_" in each.name and each.name != "rdzv_id"]
    assert not [name for name in names if name in text], "options are written with dashes"


@pytest.mark.parametrize(
    "words",
    [
        ["-h"],
        ["--nproc-per-node", "2", "--help"],
        ["--nproc-per-node=2", "-h", "train.py"],
        ["--standalone", "-h"],
        ["-m", "--help"],
        ["--no-such-option", "--help"],
        ["-x", "-h"],
        ["--devices", "--help"],
        ["-r", "3", "-t", "1", "--help"],
    ],
)
def test_help_may_stand_anywhere_before_the_script(capsys, words):
    status, out, err = run(capsys, "launch", *words)
    assert (status, err) == (0, "")
    assert out.startswith("ice_notebook launch [--option VALUE ...]")


@pytest.mark.parametrize("words", [["missing.py", "--help"], ["--", "--help"], ["--role", "-h", "missing.py"]])
def test_help_behind_the_script_is_the_scripts(capsys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "launch", *words)
    assert (status, out) == (2, "")
    assert err.startswith("ice_notebook: There is no script ")


@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["-h"], 0), ([], 2)])
def test_the_program_alone_says_how_it_is_used(capsys, monkeypatch, words, status):
    monkeypatch.setenv("COLUMNS", "60")
    found, out, err = run(capsys, *words)
    assert (found, err) == (status, "")
    assert "--version         the version" in out
    assert "ice_notebook join HOST:PORT" in out
    assert max(map(len, out.splitlines())) <= 70, "the longest example"


@pytest.mark.parametrize("words", [["--help"], ["10.0.0.1:4000", "-h"], ["--devices", "cpu", "--help"]])
def test_the_help_of_joining_has_the_options_of_a_node(capsys, words):
    found, out, err = run(capsys, "join", *words)
    assert (found, err) == (0, "")
    assert [line.strip().partition(" ")[0] for line in out.splitlines() if line.startswith("  --")] == [
        "--devices",
        "--nproc-per-node",
        "--connect-timeout",
    ]
    assert "N is a whole number from 1 to 1024, auto, cpu or gpu." in " ".join(out.split())


def test_the_version_is_said(capsys):
    assert run(capsys, "--version")[:2] == (0, f"ice_notebook {cli.__version__}\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["lanch"], "'lanch' is not a command; the commands are launch and join. --help says more."),
        (
            ["launch"],
            "There is nothing to launch: give a script, -m and a module, or --no-python and a program, behind the options.",
        ),
        (["launch", "--nnods", "2", "train.py"], "'--nnods' is not an option. Did you mean '--nnodes'?"),
        (
            ["launch", "--n", "2", "train.py"],
            "'--n' could be --nnodes, --no-python, --node-rank, --notify, --nproc-per-node or --numa-binding;",
        ),
        (["launch", "-n", "2", "train.py"], "'-n' is not an option. --help lists the options."),
        (["launch", "-x"], "'-x' is not an option. --help lists the options."),
        (["launch", "--3x", "train.py"], "'--3x' is not an option. --help lists the options."),
        (["launch", "--nproc-per-node=two", "t.py"], "--nproc-per-node='two' is not valid: expected a whole number from 1 to"),
        (["launch", "--rdzv-conf", "x", "t.py"], "--rdzv-conf='x' is not valid: expected NAME=VALUE"),
        (["launch", "--role"], "'--role' needs a value: --role=VALUE, where VALUE is a name on one line."),
        (["launch", "--role", "a", "--role", "b", "t.py"], "'--role' is given twice; give it once."),
        (
            ["launch", "--args", "(1,)", "t.py"],
            "'--args' is not an option here: it belongs to the magic of a cell and the magic of a line.",
        ),
        (["launch", "--standby", "off", "t.py"], "'--standby' is not an option here:"),
        (
            ["launch", "--nnodes", "2", "t.py"],
            "--nnodes='2' is refused: all nodes must know where they meet: give --master-addr and --master-port.",
        ),
        (["launch", "--nnodes", "1:2", "t.py"], "--nnodes='1:2' is refused: a range needs --rdzv-backend=c10d;"),
        (
            ["launch", "--node-rank=1", "t.py"],
            "--node-rank=1 is refused: there is one node, which is number 0, unless --nnodes says otherwise.",
        ),
        (["launch", "--devices", "cpu", "--nproc-per-node", "gpu", "t.py"], "There is no script 't.py'"),
        (
            ["launch", "-m", "--no-python", "x"],
            "--module and --no-python exclude each other: they say two things of what is launched; give one.",
        ),
        (
            ["launch", "--numa-binding", "node", "x.py"],
            (
                "'--numa-binding' is not available in this version: ranks are not bound to processors; launch a program that does it with "
                "--no-python, such as numactl."
            ),
        ),
        (["launch", "--max-restarts=x", "t.py"], "--max-restarts='x' is not valid: expected a whole number of 0 or more."),
        (["launch", "--devices", "cuda:x", "t.py"], "--devices='cuda:x': 'x' is not a device;"),
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
        "    x = (\n        ^\nice_notebook: The script 'wrong.py' has a syntax error in line 1: '(' was never closed.\n"
    )


@pytest.mark.parametrize("is_ignored", [False, True])
def test_an_interrupt_before_anything_is_launched_ends_the_command_without_a_word(is_ignored):
    before = "signal.signal(signal.SIGINT, signal.SIG_IGN)" if is_ignored else "pass"
    code = f"import os, signal\n{before}\nimport ice_notebook.ui.command\nos.kill(os.getpid(), signal.SIGINT)\nprint('goes on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == ((0, "goes on\n", "") if is_ignored else (-2, "", ""))


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
FOR_LAUNCHES = "psutil", "msgspec", "platformdirs", "ice_notebook.ui.launcher"


@pytest.mark.parametrize(
    ("module", "words", "unwanted"),
    [
        ("ice_notebook.ui.cli", ["--help"], SLOW + FOR_LAUNCHES),
        ("ice_notebook.ui.cli", ["launch", "--help"], SLOW + FOR_LAUNCHES),
        ("ice_notebook.ui.cli", ["launch", "--nnods", "2", "train.py"], SLOW + FOR_LAUNCHES),
        ("ice_notebook.ui.in_terminal", ["launch", "missing.py"], SLOW),  # all that comes before the agent
    ],
)
def test_nothing_is_imported_that_is_not_needed_yet(tmp_path, module, words, unwanted):
    code = f"""
import atexit, sys
atexit.register(lambda: print("imported", *sorted(sys.modules)))
import {module}
from ice_notebook.ui import cli
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
