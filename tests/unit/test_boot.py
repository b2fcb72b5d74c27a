"""On which module path a process of ours starts: what the notebook has loaded is found where the notebook has it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

import ice_notebook
from ice_notebook.host import boot

STDLIB = os.path.dirname(os.__file__)
PACKAGES = os.path.dirname(os.path.dirname(msgspec.__file__))


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A folder of the user's with modules that have the names of others."""
    for name in ("logging.py", "msgspec.py", "mine.py", "not_loaded.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong one')\n")
    (tmp_path / "psutil").mkdir()
    (tmp_path / "psutil" / "__init__.py").write_text("")
    (tmp_path / "pytest").mkdir()  # a folder that is no package gives way
    return str(tmp_path)


def test_the_standard_library_comes_first_and_the_working_folder_last():
    path = ["", "/here", "/src", PACKAGES, STDLIB, "relative"]
    assert boot.boot_path(path, "/here") == (STDLIB, "/src", PACKAGES, "/here/relative", "/here")
    own = [
        entry for entry in sys.path if entry and (entry.startswith(STDLIB) or entry.endswith(".zip")) and "packages" not in entry
    ]
    assert list(boot.boot_path(["/src", *own], "/here")) == [*own, "/src", "/here"]


def pinned(path: Iterable[str]) -> dict[str, str]:
    """Return what is pinned but for `conftest`: the tests have several modules of that name, and their folders are on the path."""
    return {name: home for name, home in boot.pinned(path).items() if name != "conftest"}


def test_what_is_loaded_and_would_not_be_found_is_pinned_to_where_it_is(source):
    import psutil  # noqa: F401 - loaded

    path = boot.boot_path([source, *sys.path], "/")
    assert pinned(path) == {"msgspec": PACKAGES, "psutil": PACKAGES}
    assert pinned(boot.boot_path(sys.path, "/")) == {}
    assert pinned([source, STDLIB, PACKAGES])["logging"] == os.path.dirname(os.path.dirname(logging.__file__))
    assert pinned(["/no/such/folder", __file__]) == {}


def test_a_fresh_interpreter_finds_what_is_pinned_and_then_forgets_it(source, tmp_path):
    package = tmp_path / "ours" / "ice_notebook"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "shown.py").write_text(
        "import logging, msgspec, sys\n"
        "def main(words, own_path):\n"
        "    from importlib import util\n"
        "    sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, '__name__', '') != '_Pinned']\n"
        "    print(words, logging.__file__, msgspec.__file__, util.find_spec('mine').origin, sys.path[0], own_path[-1], sep='\\n')\n"
    )
    own = [entry for entry in boot.boot_path(sys.path, "/") if entry.startswith(STDLIB) and "packages" not in entry]
    path = [*own, source, str(tmp_path / "ours"), PACKAGES]
    pins = boot.pinned(path)
    assert pins.pop("ice_notebook") == os.path.dirname(os.path.dirname(ice_notebook.__file__))  # the real one is loaded here
    command = boot.command(sys.executable, "shown", path, pins, ["a", "b c"])
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words, log, struct, mine, first, last = done.stdout.splitlines()
    assert words == "['a', 'b c']"
    assert (log, struct) == (logging.__file__, msgspec.__file__)
    assert (mine, first) == (os.path.join(source, "mine.py"), STDLIB)
    assert last == sys.path[-1] or last.endswith("packages")


def test_the_pins_of_this_process_go():
    class _Pinned:
        pass

    sys.meta_path.insert(0, _Pinned)  # type: ignore[arg-type]
    before = list(sys.meta_path)
    boot.forget_pins()
    assert sys.meta_path == before[1:]
