"""What cannot be launched is refused in one sentence; the cell fails, nothing is started, and no folder is left."""

from __future__ import annotations

import contextlib
import re
import subprocess
from pathlib import Path

import pytest
from support import Kernel

EMPTY = r"The cell is empty below the magic line: write the function or the statements that every rank should run\."
LISTS = r"expected numbers \(0\), ranges \(0-2\), \* for all and, after cuda:, UUIDs \(GPU-…, MIG-…\), free and free:2\."
NO_CUDA = r"no CUDA device can be used here, because .*\. Use devices=cpu for ranks on the CPU\."

REFUSED = [
    # options
    ("devices=cpu max_restart=1", "1", "OptionError", r"'max_restart' is not an option\. Did you mean 'max_restarts'\?"),
    (
        "devices=cpu nonsense",
        "1",
        "OptionError",
        r"'nonsense' is not an option: options are written as name=value or --name value, for example .*\.",
    ),
    (
        "devices=cpu max_restarts=-1",
        "1",
        "OptionError",
        r"max_restarts='-1' is not valid: expected a whole number of 0 or more\.",
    ),
    (
        "devices=cpu max_restarts",
        "1",
        "OptionError",
        r"'max_restarts' needs a value: max_restarts=VALUE, where VALUE is a whole number of 0 or more\.",
    ),
    ("devices=cpu grace=-1", "1", "OptionError", r"grace='-1' is not valid: expected a number of seconds, 0 or more\."),
    ("devices=cpu timeout=0", "1", "OptionError", r"timeout='0' is not valid: expected a number of seconds above 0\."),
    (
        "devices=cpu redirects=9",
        "1",
        "OptionError",
        r"redirects='9' is not valid: expected 0 \(none\), 1 \(stdout\), 2 \(stderr\) or 3 \(both\), .*\.",
    ),
    ("devices=cpu devices=cpu:0", "1", "OptionError", r"'devices' is given twice; give it once\."),
    (
        "devices=cpu args=(1,",
        "def f(x): pass",
        "OptionError",
        r"The magic's line ends inside '\(1,': close the quote or the bracket\.",
    ),
    (
        "devices=cpu args=(gone,)",
        "def f(x): pass",
        "OptionError",
        r"args=\(gone,\): the expression raised NameError: name 'gone' is not defined\.",
    ),
    (
        "devices=cpu args=(1,)",
        "1",
        "CellError",
        r"args= and kwargs= are for a function: this cell's last statement defines none, and function= names none\.",
    ),
    (
        "devices=cpu start_method=fork",
        "1",
        "OptionError",
        r"start_method='fork' is refused: forking a process with threads .* would hang; use spawn, or forkserver\.",
    ),
    (
        "devices=cpu nnodes=2 node_rank=1",
        "1",
        "OptionError",
        r"node_rank='1' is refused: the machine of the notebook is node 0\. Launch there, and run the command that the run shows, .*\.",
    ),
    *(
        (
            f"devices=cpu {option}",
            "1",
            "OptionError",
            rf"'{option.partition('=')[0]}' is not available in this version: .* later.*\.",
        )
        for option in ("detach", "debug=true", "notify=true", "when_busy=wait")
    ),
    # devices
    (
        "devices=cudabanana",
        "1",
        "DeviceError",
        r"devices='cudabanana': 'cudabanana' is not a device type; the types are auto, cpu and cuda\. No variable .*\.",
    ),
    ("devices=", "1", "DeviceError", r"devices='' is not a device: expected auto, cpu, cuda or a list of them such as .*\."),
    ('devices=""', "1", "DeviceError", r"devices='' is not a device: expected auto, cpu, cuda or a list of them such as .*\."),
    ("devices=cuda:0,", "1", "DeviceError", rf"devices='cuda:0,': a device is missing beside a comma or colon; {LISTS}"),
    ("devices=cuda:2-1", "1", "DeviceError", r"devices='cuda:2-1': the range 2-1 runs backwards; write 1-2\."),
    ("devices=cuda:0;1", "1", "DeviceError", rf"devices='cuda:0;1': '0;1' is not a device; {LISTS}"),
    ("devices=cuda", "1", "DeviceError", rf"devices='cuda': {NO_CUDA}"),
    ("devices=cuda:99", "1", "DeviceError", rf"devices='cuda:99': {NO_CUDA}"),
    ("nproc_per_node=gpu", "1", "DeviceError", rf"nproc_per_node=gpu: {NO_CUDA}"),
    (
        "devices=cpu dist_backend=nccl",
        "1",
        "DeviceError",
        r"dist_backend=nccl cannot join the ranks of cpu:0: it works on GPUs only\. Use .*\.",
    ),
    (
        "devices=cpu:0-3 nproc_per_node=2",
        "1",
        "DeviceError",
        r"nproc_per_node=2 is less than the 4 devices of devices='cpu:0-3': shorten the list, or .*\.",
    ),
    # cells
    ("devices=cpu", "", "CellError", EMPTY),
    ("devices=cpu", "   \n\n\t\n", "CellError", EMPTY),
    ("devices=cpu", "# nothing\n\n# at all", "CellError", EMPTY),
    ("devices=cpu", "def f(:\n  pass", "CellSyntaxError", r"invalid syntax \(Cell In\[\d+\], line 2\)"),
    ("devices=cpu", "1\nreturn 3", "CellSyntaxError", r"'return' outside function \(Cell In\[\d+\], line 3\)"),
    (
        "devices=cpu",
        "def train(model, lr, *, n):\n    pass",
        "CellError",
        r"`train` requires model, lr and n: a launched function gets the launcher .* as default values\.",
    ),
    (
        "devices=cpu args=(1, 2)",
        "def train(model):\n    pass",
        "CellError",
        r"`train` does not take these arguments: too many positional arguments\.",
    ),
    (
        "devices=cpu function=train_all",
        "1",
        "CellError",
        r"function=train_all: neither this cell nor the notebook defines 'train_all'\.( Did you mean .*)?",
    ),
    (
        "devices=cpu function=number",
        "1",
        "CellError",
        r"function=number: 'number' is an int, but only a function can be launched\.",
    ),
    (
        "devices=cpu",
        "opened.read()",
        "PayloadError",
        r"`opened` cannot be sent to the ranks: it is an open file\. Open it in the function\.",
    ),
]


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    """A kernel with a cache of its own, in which nothing is ever launched."""
    cache = tmp_path_factory.mktemp("refusing")
    kernel = Kernel()
    kernel.run(f"import os; os.environ['XDG_CACHE_HOME'] = {str(cache)!r}\nopened, number = open(os.devnull), 3")
    yield kernel, cache
    kernel.close()


STARTED = "__import__('threading').active_count(), len(__import__('psutil').Process().children(recursive=True))"


@pytest.mark.parametrize(("line", "cell", "kind", "sentence"), REFUSED, ids=[f"{line} | {cell[:20]}" for line, cell, *_ in REFUSED])
def test_what_cannot_be_launched_is_refused_in_one_sentence(refusing, line, cell, kind, sentence):
    kernel, cache = refusing
    before = kernel.value(STARTED)
    outcome = kernel.run(f"%%elastic_launch -o bound {line}\n{cell}")
    assert outcome.error_name == kind, outcome.text or outcome.error
    assert re.fullmatch(sentence, outcome.error_value), outcome.error_value
    assert outcome.error.splitlines()[-1] == f"{kind}: {outcome.error_value}"
    assert len(outcome.error.splitlines()) <= 3  # a syntax error shows its line
    assert [out["type"] for out in outcome.outputs] == ["error"]
    assert kernel.value(STARTED) == before
    assert left_in(cache) == []
    assert kernel.value("'bound' in globals()") is False


def left_in(cache: Path) -> list[str]:
    """Return what a refused launch has left below the cache."""
    return [str(path) for path in cache.rglob("*") if path.name != "ice_notebook"]


def test_a_file_in_the_way_of_log_dir_is_named(refusing, tmp_path):
    kernel, cache = refusing
    in_the_way = tmp_path / "logs"
    in_the_way.write_text("")
    outcome = kernel.run(f"%%elastic_launch devices=cpu log_dir={in_the_way}\n1")
    assert outcome.error_name == "LaunchError"
    assert outcome.error_value.startswith(f"The folder '{in_the_way}/none_")
    assert outcome.error_value.endswith(" cannot be made: File exists. Move what is in the way, or give log_dir another folder.")
    assert left_in(cache) == []


def test_a_file_in_the_way_of_the_cache_is_named(refusing, tmp_path):
    kernel, _ = refusing
    (tmp_path / "ice_notebook").write_text("")
    kernel.run(f"cache, os.environ['XDG_CACHE_HOME'] = os.environ['XDG_CACHE_HOME'], {str(tmp_path)!r}")
    outcome = kernel.run("%%elastic_launch devices=cpu\n1")
    kernel.run("os.environ['XDG_CACHE_HOME'] = cache")
    assert outcome.error_name == "LaunchError", outcome.error
    assert re.fullmatch(
        r"The run folder '.*' cannot be made: .*\. Move what is in the way, or set XDG_CACHE_HOME to .*", outcome.error_value
    )


def fill(path: Path) -> None:
    """Use up all the room there is."""
    with path.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


@pytest.mark.root
def test_a_full_disk_is_told_before_anything_starts_and_nothing_is_left(refusing, tmp_path):
    kernel, _ = refusing
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)], check=True)
    try:
        (full / "ice_notebook").mkdir()
        fill(full / "filler")
        shared = tmp_path / "shared"  # in the place of the machine's, where others may launch meanwhile
        shared.mkdir()
        kernel.run("from ice_notebook.values import shared_values")
        kernel.run(
            f"shared_values.SHARED_MEMORY, shared = type(shared_values.SHARED_MEMORY)({str(shared)!r}), shared_values.SHARED_MEMORY"
        )
        before = kernel.value(STARTED)
        kernel.run(f"cache, os.environ['XDG_CACHE_HOME'] = os.environ['XDG_CACHE_HOME'], {str(full)!r}")
        outcome = kernel.run("%%elastic_launch devices=cpu -o bound\n1")
        assert outcome.error_name == "LaunchError", outcome.text
        assert "No space left on device" in outcome.error_value
        assert "Free space" in outcome.error_value
        assert list((full / "ice_notebook").iterdir()) == []
        assert list(shared.iterdir()) == []
        assert kernel.value(STARTED) == before
    finally:
        kernel.run("os.environ['XDG_CACHE_HOME'], shared_values.SHARED_MEMORY = cache, shared")
        subprocess.run(["umount", str(full)], check=True)


def test_a_working_directory_that_is_gone_is_named(refusing, tmp_path):
    kernel, cache = refusing
    gone = tmp_path / "gone"
    gone.mkdir()
    kernel.run(f"here = os.getcwd(); os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})")
    outcome = kernel.run("%%elastic_launch devices=cpu\n1")
    kernel.run("os.chdir(here)")
    assert outcome.error_name == "LaunchError"
    assert "working directory, which is gone" in outcome.error_value
    assert left_in(cache) == []


def test_a_launch_is_possible_after_all_that(refusing):
    kernel, _ = refusing
    outcome = kernel.run("%%elastic_launch devices=cpu ui=none\n6 * 7")
    assert not outcome.error
    assert outcome.value.splitlines()[-1] == "rank 0: 42"
