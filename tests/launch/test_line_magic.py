"""`%elastic_launch` in a real kernel: scripts, modules, programs and functions from a line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import Kernel, wait_until

TRAIN = """\
import os, sys
import ice_notebook

def step(batch):
    return 1 / batch

if __name__ == "__main__":
    ice_notebook.set_result((int(os.environ["RANK"]), sys.argv[1:]))
    print("last", step(float(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel in a folder with scripts. Its tests leave it as they found it."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "train.py").write_text(TRAIN)
    (folder / "wrong.py").write_text("a = (\n")
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "tool.py").write_text("import sys, own\nprint('tool', own.name, sys.argv[1:])\n")
    (folder / "lib").mkdir()
    (folder / "lib" / "own.py").write_text("name = 'of the notebook'\n")
    made = Kernel(cwd=str(folder))
    made.run("import os, sys\nlr = 0.5\ndef fn(launcher, factor=2):\n    return factor * launcher.rank\n")
    yield made
    made.close()


def test_a_script_gets_its_arguments_with_values_of_the_notebook(kernel: Kernel):
    outcome = kernel.run("%elastic_launch devices=cpu:0-1 -o run train.py {lr} '{lr}' \"a b\" x{1 + 1}")
    arguments = "['0.5', '{lr}', 'a b', 'x2']"
    assert outcome.value.splitlines()[1:] == [f"rank 0: (0, {arguments})", f"rank 1: (1, {arguments})"], outcome.error
    assert kernel.value("(_ is run, run.plan.name, run.exit_codes, run.output(1))") == (
        True,
        "train.py 0.5 '{lr}' 'a b' x2",
        {0: 0, 1: 0},
        "last 2.0\n",
    )


def test_a_script_that_fails_is_drawn_with_its_line(kernel: Kernel):
    outcome = kernel.run("%elastic_launch devices=cpu train.py 0")
    assert outcome.error_name == "RunFailed"
    assert outcome.error_value == "rank 0: ZeroDivisionError: float division by zero (train.py, line 5)"
    assert re.search(r"^-+> 5     return 1 / batch$", outcome.error, re.MULTILINE)
    report = next(out for out in outcome.outputs if "ice-report" in out.get("data", {}).get("text/html", ""))
    assert "return 1 / batch" in report["data"]["text/html"]
    assert "return 1 / batch" in report["data"]["text/plain"]


def test_a_module_finds_what_the_notebook_finds(kernel: Kernel):
    kernel.run("sys.path.append(os.path.abspath('lib'))")
    outcome = kernel.run("%elastic_launch devices=cpu -o run -m package.tool --lr {lr}")
    kernel.run("sys.path.pop()")
    assert outcome.value.splitlines()[1:] == ["rank 0: exit code 0"], outcome.error
    assert kernel.value("run.output(0)") == "tool of the notebook ['--lr', '0.5']\n"


def test_a_program_is_started_and_stopped(kernel: Kernel, tmp_path):
    outcome = kernel.run("run = %elastic_launch devices=cpu:0-1 --no-python sh -c 'echo $LOCAL_RANK'")
    assert not outcome.error
    assert kernel.value("[run.output(rank) for rank in (0, 1)]") == ["0\n", "1\n"]
    mark = tmp_path / "mark"
    request = kernel.start(
        f"%elastic_launch devices=cpu --no-python sh -c 'trap \"exit 0\" TERM; touch {mark}; while :; do sleep 0.05; done'"
    )
    wait_until(mark.exists)
    kernel.interrupt()
    assert kernel.finish(request).error_name == "KeyboardInterrupt"


def test_a_function_of_the_notebook_is_launched_by_its_name(kernel: Kernel):
    outcome = kernel.run("%elastic_launch devices=cpu:0-1 fn")
    assert outcome.value.splitlines()[1:] == ["rank 0: 0", "rank 1: 2"], outcome.error
    outcome = kernel.run("%elastic_launch devices=cpu:0-1 ui=none function=fn kwargs=dict(launcher=None) background -o run")
    assert not outcome.error
    kernel.run("run.wait()")
    assert kernel.value("run.phase.value") == "failed"  # the function got exactly what it was given: None


REFUSED = [
    (
        "",
        "ScriptError",
        "There is nothing to launch: give a script, -m and a module, or --no-python and a program, behind the options.",
    ),
    ("tran.py", "ScriptError", "There is no script 'tran.py' in '{folder}'. Did you mean 'train.py'?"),
    (
        "devices=cpu standalon train.py",
        "ScriptError",
        (
            "'standalon' is neither a function of this notebook nor a script in '{folder}'. Did you mean 'standalone'? "
            "Options are written name=value or --name value, and stand before what is launched."
        ),
    ),
    ("wrong.py", "ScriptError", "The script 'wrong.py' has a syntax error in line 1: '(' was never closed."),
    (
        "-m package.tol",
        "ScriptError",
        "There is no module 'package.tol' to launch: 'package' has no 'tol'. Did you mean 'package.tool'?",
    ),
    (
        "-m --no-python x",
        "OptionError",
        "module and no_python exclude each other: they say two things of what is launched; give one.",
    ),
    ("max_restart=1 train.py", "OptionError", "'max_restart' is not an option. Did you mean 'max_restarts'?"),
    (
        "standalone rdzv_endpoint=localhost:0 train.py",
        "OptionError",
        "standalone and rdzv_endpoint=localhost:0 exclude each other: a node that is alone meets nobody there; leave one of them out.",
    ),
    ("train.py {gone}", "OptionError", "argument=gone: the expression raised NameError: name 'gone' is not defined."),
    (
        "fn 3",
        "ScriptError",
        "'fn' is a function of this notebook, but '3' follows it: give its arguments as args=(…) or kwargs={{…}}.",
    ),
    ("function=fn train.py", "ScriptError", "function=fn and 'train.py' both say what is launched: give one of them."),
    (
        "--run-path train.py",
        "ScriptError",
        "run_path requires an absolute path, got 'train.py'; leave it out to use a relative one.",
    ),
]


@pytest.mark.parametrize(("line", "kind", "sentence"), REFUSED, ids=[line for line, *_ in REFUSED])
def test_what_cannot_be_launched_is_one_sentence(kernel: Kernel, line, kind, sentence):
    folder = kernel.value("os.getcwd()")
    outcome = kernel.run(f"%elastic_launch {line}")
    assert (outcome.error_name, outcome.error_value) == (kind, sentence.format(folder=folder))
    assert outcome.error.splitlines()[-1] == f"{kind}: {outcome.error_value}"
    assert len(outcome.error.splitlines()) <= 3


def test_a_port_in_use_is_refused_with_its_holder(kernel: Kernel):
    port = kernel.value(
        "(__import__('builtins').__dict__.setdefault('taken', __import__('socket').create_server(('127.0.0.1', 0))).getsockname()[1])"
    )
    outcome = kernel.run(f"%elastic_launch devices=cpu master_port={port} train.py 1")
    kernel.run("taken.close()")
    assert outcome.error_name == "LaunchError"
    assert f"The port {port} on 127.0.0.1 is in use by " in outcome.error_value
    assert f"(pid {kernel.pid}): give another one, or none for a free one." in outcome.error_value


def test_the_line_has_a_help_of_its_own(kernel: Kernel):
    text = kernel.run("%elastic_launch --help").text
    assert "%elastic_launch [option=value ...] -m module [argument ...]" in text
    assert "no_python\n" in text


def test_names_of_options_and_values_are_completed(kernel: Kernel):
    def completions(code: str) -> list[str]:
        request = kernel.client.complete(code, len(code))
        while (reply := kernel.client.get_shell_msg(timeout=30))["parent_header"]["msg_id"] != request:
            pass
        return reply["content"]["matches"]

    assert "no_python" in completions("%elastic_launch no_")
    assert "max_restarts=" in completions("%elastic_launch devices=cpu max")


def test_nothing_of_refused_launches_is_left(kernel: Kernel):
    assert kernel.value("sum(1 for _ in __import__('pathlib').Path('.').glob('*_*-*'))") == 0
    assert Path(kernel.value("os.getcwd()")).is_dir()
