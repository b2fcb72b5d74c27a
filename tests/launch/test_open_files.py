"""What is still open when a script, a cell's body or a function ends is written, as at the end of any Python program."""

from __future__ import annotations

import gzip
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support import Kernel

from ice_notebook.kernel.run import Run

# Ends by an exception: an agent that ends a failed attempt at once must leave a program this time as well.
SCRIPT = """
import atexit, bz2, csv, gzip, io, json, lzma, os, shelve, sqlite3, sys, tempfile, threading, time, weakref, zipfile
import local_part

log = open("plain", "w"); log.write("result 42\\n")
_private = open("private", "w"); _private.write("private")
table = csv.writer(open("table.csv", "w")); table.writerow([1, 2, 3])
raw = open("bytes", "wb"); raw.write(b"x" * 100)
config = {"deep": [{"log": open("dict", "w")}]}; config["deep"][0]["log"].write("in a dict")

class Holder:
    def __init__(self, name):
        self.name, self.file = name, open(name, "w")
        self.file.write(self.name)
    def __del__(self):
        with open("del " + self.name, "w") as file:
            json.dump(helper(self.name), file)

def helper(name):  # a finalizer still finds what its module has
    return [name, __name__]

holder = Holder("object")
knot = Holder("knot"); knot.me = knot
packed = gzip.open("packed.gz", "wt"); packed.write("packed" * 100)
bz = bz2.open("packed.bz2", "wt"); bz.write("packed" * 100)
xz = lzma.open("packed.xz", "wt"); xz.write("packed" * 100)
archive = zipfile.ZipFile("archive.zip", "w"); archive.writestr("member", "in an archive")
temporary = tempfile.NamedTemporaryFile(dir=".", prefix="temporary "); temporary.write(b"gone")
folder = tempfile.TemporaryDirectory(dir=".", prefix="temporary ")
shelf = shelve.open("shelf"); shelf["a"] = 1
base = sqlite3.connect("base"); base.execute("create table t (x)"); base.execute("insert into t values (1)"); base.commit()

def steps():
    with open("generator", "w") as file:
        file.write("left in the middle")
        yield
step = steps(); next(step)

weakref.finalize(holder, lambda: open("finalize", "w").write("finalized"))
atexit.register(lambda: log.write("atexit\\n"))

def late():
    time.sleep(0.3)
    log.write("thread\\n")
threading.Thread(target=late).start()

local_part.begin()
sys.stdout = open("stdout", "w")
print("printed")

def deepest(file):
    file.write("in a frame")
    raise ValueError("bad loss")

pid = os.fork()
if pid == 0:
    own = open("child", "w"); own.write("of the child")
    sys.exit(3)
open("child status", "w").write(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
deepest(open("frame", "w"))
"""
LOCAL_PART = """
import builtins

def begin():
    global file
    file = open("local", "w")
    file.write("of a module")
    builtins.kept = open("builtins", "w")  # which is never taken down
    builtins.kept.write("of somebody else")
"""
WRITTEN = {
    "plain": "result 42\nthread\natexit\n",
    "private": "private",
    "table.csv": "1,2,3\n",
    "bytes": "x" * 100,
    "dict": "in a dict",
    "object": "object",
    "del object": '["object", "__main__"]',
    "knot": "knot",
    "del knot": '["knot", "__main__"]',
    "generator": "left in the middle",
    "finalize": "finalized",
    "local": "of a module",
    "builtins": "of somebody else",
    "stdout": "printed\n",
    "frame": "in a frame",
    "child": "of the child",
    "child status": "3",
}


def test_all_that_a_script_leaves_open_is_written_although_it_fails(tmp_path: Path):
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "local_part.py").write_text(LOCAL_PART)
    command = [sys.executable, "-m", "ice_notebook", "launch", "--nproc-per-node", "1", "train.py"]
    done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert "rank 0 failed: ValueError: bad loss" in done.stdout, (done.stdout, done.stderr)
    found = {name: (tmp_path / name).read_text().replace("\r\n", "\n") for name in WRITTEN if (tmp_path / name).exists()}
    # The child has a copy of what its parent had not written yet, and writes that as well, as under Python.
    assert {name: text for name, text in found.items() if not text.endswith(WRITTEN[name])} == {}
    assert sorted(found) == sorted(WRITTEN)
    assert gzip.open(tmp_path / "packed.gz", "rt").read().endswith("packed" * 100)
    for name in ("packed.bz2", "packed.xz", "shelf", "base"):
        assert any(path.stat().st_size for path in tmp_path.glob(f"{name}*")), name
    assert zipfile.ZipFile(tmp_path / "archive.zip").read("member") == b"in an archive"
    assert list(tmp_path.glob("temporary *")) == []


def test_what_a_function_keeps_open_is_written_and_so_is_what_a_cells_body_does(kernel: Kernel, tmp_path: Path):
    (tmp_path / "keeps.py").write_text("files = []\n")
    kernel.run(f"import os, sys\nos.chdir({str(tmp_path)!r})\nsys.path.insert(0, '')")
    function = """%%elastic_launch devices=cpu:0,1 dist_init=no
def work(launcher):
    import keeps
    global kept
    kept = open(f"global {launcher.rank}", "w")
    kept.write("of the function's module")
    keeps.files.append(open(f"module {launcher.rank}", "w"))
    keeps.files[0].write("of a module")
"""
    body = "%%elastic_launch devices=cpu dist_init=no\nfile = open('body', 'w')\nfile.write('data of the body')"
    for cell in (function, body):
        outcome = kernel.run(cell, timeout_s=120)
        assert not outcome.error, outcome.error
    written = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file() and path.name != "keeps.py"}
    assert written == {
        **{f"global {rank}": "of the function's module" for rank in (0, 1)},
        **{f"module {rank}": "of a module" for rank in (0, 1)},
        "body": "data of the body",
    }


def test_a_rank_that_writes_at_its_end_is_given_its_grace_when_another_fails(start: Any, tmp_path: Path):
    """The one that fails writes what it has as well: the agent ends a failed attempt at once."""

    def work() -> None:
        import atexit
        import os
        import time

        rank = os.environ["RANK"]

        def save() -> None:
            time.sleep(0.5)
            with open(tmp_path / f"saved {rank}", "w") as file:
                file.write(rank)

        atexit.register(save)
        raise ValueError(rank)

    run: Run = start(work, dist_init="no")
    assert run.wait(60)
    assert run.phase == "failed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved 0", "saved 1"]


# ---- the steps themselves ---------------------------------------------------------------------------------------------------------------

LEAVES = """
import signal, sys
from ice_notebook.wire import protocol as p
from ice_notebook.rank import script
from ice_notebook.rank.leaving import Leaving

def interrupted(*_):
    if leaving.is_waiting:
        raise KeyboardInterrupt

leaving, code = Leaving(), int(sys.argv[1])
signal.signal(signal.SIGINT, interrupted)
script.run(p.Script(kind=p.ScriptKind.FILE, target="program.py"), sys.path)
leaving.leave(code)
"""


def leave(program: str, folder: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program that leaves as a rank does."""
    (folder / "program.py").write_text(f"import os, signal, sys, threading, time\n{textwrap.dedent(program)}")
    command = [sys.executable, "-c", LEAVES, str(code)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("code", "status"), [(0, -15), (3, 3)])
def test_a_sigterm_while_files_are_written_waits_until_they_are(tmp_path, code, status):
    done = leave(
        """
        class Slow:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)
        slow = Slow()
        file = open("file", "w")
        file.write("written")
        """,
        tmp_path,
        code,
    )
    assert (done.returncode, done.stderr, (tmp_path / "file").read_text()) == (status, "", "written")


def test_a_sigterm_before_ends_the_process_as_any_other(tmp_path):
    program = """
        threading.Thread(target=time.sleep, args=[30]).start()
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()
    """
    assert leave(program, tmp_path).returncode == -15


def test_an_interrupt_ends_the_wait_for_threads_and_the_rest_is_done(tmp_path):
    done = leave(
        """
        import atexit
        threading.Thread(target=time.sleep, args=[30]).start()
        timer = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]); timer.daemon = True; timer.start()
        file = open("file", "w")
        atexit.register(lambda: file.write("atexit"))
        """,
        tmp_path,
    )
    assert (done.returncode, done.stderr, (tmp_path / "file").read_text()) == (0, "", "atexit")


def test_what_goes_wrong_in_one_step_keeps_no_other_from_being_done(tmp_path):
    done = leave(
        """
        import atexit, builtins, gzip
        class Bad:
            def __del__(self):
                raise ValueError("in a finalizer")
        bad = Bad()
        atexit.register(lambda: 1 / 0)
        builtins.full = open("/dev/full", "w"); full.write("x")
        builtins.packed = gzip.open("packed.gz", "wt"); packed.write("packed")
        builtins.kept = open("kept", "w"); kept.write("kept")
        sys.stdout = None
        """,
        tmp_path,
        4,
    )
    assert done.returncode == 4
    assert "ZeroDivisionError" in done.stderr
    assert "in a finalizer" in done.stderr
    assert (tmp_path / "kept").read_text() == "kept"
    assert gzip.open(tmp_path / "packed.gz", "rt").read() == "packed"


def test_threads_that_go_on_complain_of_nothing(tmp_path):
    done = leave(
        """
        def tick():
            while True:
                time.sleep(0)
        for _ in range(3):
            threading.Thread(target=tick, daemon=True).start()
        class Slow:
            def __del__(self):
                for _ in range(20):
                    __import__("time").sleep(0.005)
        slow = Slow()
        """,
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
