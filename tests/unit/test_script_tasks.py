"""What a line or a command names: what is found, what is refused, in one sentence each."""

from __future__ import annotations

import py_compile
import shutil
import zipfile
from pathlib import Path

import pytest

from ice_notebook.errors import ScriptError
from ice_notebook.options.launch_options import LaunchOptions
from ice_notebook.options.table import Surface
from ice_notebook.tasks.scripts import NAME_CHARACTERS, ScriptTask, read_script
from ice_notebook.wire.protocol import Script, ScriptKind


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with scripts of all kinds."""
    monkeypatch.chdir(tmp_path)
    files = {
        "train.py": "print('é')\n",
        "wrong.py": "a = 1\n    b = (2\n",
        "train.sh": "echo $1\nif [ -f x ]; then exit; fi\n",
        "latin.py": "# -*- coding: latin-1 -*-\nword = 'é'\n",
        "package/__init__.py": "raise AssertionError('imported')\n",
        "package/part.py": "",
        "package/inner/__init__.py": "",
        "package/inner/__main__.py": "",
        "bare/readme": "",
        "loose/module.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="latin-1" if name == "latin.py" else "utf-8")
    (tmp_path / "image.png").write_bytes(bytes(range(256)))
    (tmp_path / "plain").write_text("not a program")
    (tmp_path / "empty.zip").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("other.py", "")
    return tmp_path


def read(*words: str, **asked: object) -> ScriptTask:
    return read_script(LaunchOptions.of(asked, Surface.LINE).validate(), words)


def refusal(*words: str, **asked: object) -> str:
    with pytest.raises(ScriptError) as caught:
        read(*words, **asked)
    return str(caught.value)


def test_a_script_is_known_by_its_path_and_its_text(folder):
    task = read("train.py", "--lr", "a b")
    assert task.script == Script(kind=ScriptKind.FILE, target="train.py", args=("--lr", "a b"))
    assert task.sources == {f"{folder}/train.py": ("train.py", "print('é')\n")}
    assert task.name == "train.py --lr 'a b'"
    assert read("latin.py").sources[f"{folder}/latin.py"][1].endswith("'é'\n")
    assert read(f"{folder}/train.py", run_path=True).script.target == f"{folder}/train.py"


def test_the_local_rank_of_the_old_launcher_comes_first(folder):
    script = read("train.py", "--lr", "1", use_env=False).script
    assert script.of_rank(3).args == ("--local-rank=3", "--lr", "1")
    assert script.of_rank(3) == Script(kind=ScriptKind.FILE, target="train.py", args=("--local-rank=3", "--lr", "1"))


def test_a_module_is_found_without_importing_its_package(folder):
    for name in ("package.part", "package.inner", "timeit", "pip", "loose.module", "json.tool"):
        task = read(name, "x", module=True)
        assert task.script == Script(kind=ScriptKind.MODULE, target=name, args=("x",))
        assert task.name == f"-m {name} x"


def test_a_program_is_found_on_the_path_or_by_its_own(folder):
    (folder / "tool").write_text("#!/bin/sh\n")
    (folder / "tool").chmod(0o700)
    for name in ("sh", "./tool"):
        assert read(name, no_python=True).script == Script(kind=ScriptKind.PROGRAM, target=name)
    assert read("tool", no_python=True, env={"PATH": str(folder)}).script.target == "tool"


def test_a_long_command_is_cut_in_the_name_of_what_runs(folder):
    assert len(read("train.py", "x" * 10_000).name) == NAME_CHARACTERS


NOTHING = "There is nothing to launch: give a script, -m and a module, or --no-python and a program, behind the options."


@pytest.mark.parametrize(
    ("words", "asked", "sentence"),
    [
        ([], {}, NOTHING),
        (["tran.py"], {}, "There is no script 'tran.py' in '{folder}'. Did you mean 'train.py'?"),
        (["gone/x.py"], {}, "There is no script 'gone/x.py' in '{folder}'."),
        (["package/prat.py"], {}, "There is no script 'package/prat.py' in '{folder}'. Did you mean 'package/part.py'?"),
        (["bare"], {}, "'bare' has no __main__.py, by which a folder or an archive is launched. Name a script in it."),
        (
            ["archive.zip"],
            {},
            "'archive.zip' has no __main__.py, by which a folder or an archive is launched. Name a script in it.",
        ),
        (
            ["train.sh", "x"],
            {},
            "'train.sh' is not Python: line 1: invalid syntax. With no_python it is started as a program of its own.",
        ),
        (["image.png"], {}, "'image.png' is not Python: "),
        (["wrong.py"], {}, "The script 'wrong.py' has a syntax error in line 2: unexpected indent."),
        (
            ["train.py"],
            {"run_path": True},
            "run_path requires an absolute path, got 'train.py'; leave it out to use a relative one.",
        ),
        (["package/part.py"], {"module": True}, "-m expects the name of a module, but 'package/part.py' is a path: leave -m out,"),
        (["train.py"], {"module": True}, "-m expects the name of a module, but 'train.py' is a path: leave -m out,"),
        (["a-b"], {"module": True}, "There is no module 'a-b' to launch: a module's name is words with dots between them."),
        (
            ["pakage.part"],
            {"module": True},
            (
                "There is no module 'pakage.part' to launch: no module 'pakage' is found in the working directory or installed. "
                "Did you mean 'package'?"
            ),
        ),
        (
            ["package.prt"],
            {"module": True},
            "There is no module 'package.prt' to launch: 'package' has no 'prt'. Did you mean 'package.part'?",
        ),
        (["package"], {"module": True}, "There is no module 'package' to launch: it is a package without __main__.py."),
        (["nonsense-7"], {"no_python": True}, "There is no program 'nonsense-7' to start: PATH names no folder with it."),
        (
            ["train.sh"],
            {"no_python": True},
            "There is no program 'train.sh' to start: PATH names no folder with it (write ./ before a file of this folder).",
        ),
        (["./gone"], {"no_python": True}, "There is no program './gone' to start: there is no such file."),
        (["./bare"], {"no_python": True}, "There is no program './bare' to start: it is a folder."),
        (
            ["./plain"],
            {"no_python": True},
            "There is no program './plain' to start: the file may not be executed; chmod +x allows it.",
        ),
    ],
)
def test_what_cannot_be_launched_is_refused_in_one_sentence(folder, words, asked, sentence):
    assert refusal(*words, **asked).startswith(sentence.format(folder=folder))


def test_compiled_scripts_are_taken_as_python_takes_them(folder):
    py_compile.compile("train.py", "compiled.pyc", doraise=True)
    shutil.copy("compiled.pyc", "no_suffix")
    (folder / "sourceless").mkdir()
    shutil.copy("compiled.pyc", "sourceless/__main__.pyc")
    for name in ("compiled.pyc", "no_suffix", "sourceless"):
        assert read(name).script.target == name
        assert read(name).sources == {}
    content = (folder / "compiled.pyc").read_bytes()
    (folder / "other.pyc").write_bytes(b"\0\0" + content[2:])
    (folder / "cut.pyc").write_bytes(content[:9])
    for name, why in [("other.pyc", "it was compiled by another version of Python"), ("cut.pyc", "it ends in its head")]:
        assert refusal(name) == f"{name!r} cannot be run by this Python: {why}. Launch its source, or compile it again."


def test_a_script_that_is_not_right_is_shown_with_its_line(folder):
    with pytest.raises(ScriptError) as caught:
        read("wrong.py")
    assert caught.value._render_traceback_()[:1] == ["    b = (2"]


def test_a_script_that_cannot_be_read_says_why(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ice_notebook.tasks.scripts.tokenize.open", refuse)
    assert refusal("train.py") == "The script 'train.py' cannot be read: Permission denied."
