"""Text of the operating system is bytes: what is no UTF-8 launches, and arrives as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ice_notebook import get_current_launcher
from ice_notebook.kernel.run import Run

BYTE = os.fsdecode(b"caf\xe9 \xff")
WORD = os.fsdecode(b"run\xe9")
PRINTS = r"""
import os, sys
print("argv", *[os.fsencode(word) for word in sys.argv])
print("folder", os.getcwdb())
print("variable", os.environb[b"ODD"], os.environb[b"TORCHELASTIC_RUN_ID"], os.environb[b"ROLE_NAME"])
assert os.environb[b"ODD"] == os.fsencode(os.environ["ODD"])
import beside_odd
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, a cache, a module path and a variable, all with bytes that are no UTF-8."""
    for name in ("work", "cache", "modules", "logs"):
        (tmp_path / f"{name} {BYTE}").mkdir()
    monkeypatch.chdir(tmp_path / f"work {BYTE}")
    monkeypatch.syspath_prepend(str(tmp_path / f"modules {BYTE}"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / f"modules {BYTE}"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache {BYTE}"))
    monkeypatch.setenv("ODD", BYTE)
    (tmp_path / f"modules {BYTE}" / "beside_odd.py").write_text("VALUE = 5\n")
    return tmp_path


def test_a_function_finds_every_byte_and_may_name_and_raise_what_it_likes(launch: Any, odd: Path):
    def look() -> Any:
        import beside_odd

        launcher = get_current_launcher()
        for _ in launcher.progress(range(2), desc="\udce9"):
            pass
        assert beside_odd.VALUE == 5
        found = [os.fsencode(text) for text in (os.getcwd(), os.environ["ODD"], os.environ["GIVEN"], sys.path[0])]
        assert os.environb[b"ODD"] == os.fsencode(os.environ["ODD"])
        if launcher.rank:
            raise type("Odd", (ValueError,), {"__qualname__": BYTE})("of \udcff")
        return type("Value", (list,), {"__qualname__": BYTE, "__reduce__": lambda self: (list, (found,))})()

    run: Run = launch(look, env={"GIVEN": BYTE}, log_dir=str(odd / f"logs {BYTE}"), rdzv_id=WORD, role=BYTE)
    assert run.phase == "failed"
    work, modules = (os.fsencode(odd / f"{name} {BYTE}") for name in ("work", "modules"))
    raw = os.fsencode(BYTE)
    assert run.results.get(0) in (None, [work, raw, raw, modules])  # rank 1 may fail first
    assert run.failures[1].headline == "Odd: of \\udcff"
    for text in (repr(run), run._repr_html_(), str(run.exception())):
        text.encode()
    assert run.folder.parent == odd / f"logs {BYTE}"
    assert repr(Run.open(run.folder)) == repr(run)


def test_a_script_finds_every_byte_and_its_failure_is_shown(odd: Path):
    script = Path(f"{BYTE}.py")
    script.write_text(PRINTS + 'raise ValueError(os.environ["ODD"])\n')
    command = [sys.executable, "-m", "ice_notebook", "launch", "--nproc-per-node", "1", "--rdzv-id", WORD, "--role", BYTE]
    done = subprocess.run([*command, str(script), BYTE], stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False)
    raw = os.fsencode(BYTE)
    assert done.returncode == 1, done.stderr
    assert f"[0] argv {raw + b'.py'} {raw}".encode() in done.stdout
    assert f"[0] folder {os.fsencode(odd / f'work {BYTE}')}".encode() in done.stdout
    assert f"[0] variable {raw} {os.fsencode(WORD)} {raw}".encode() in done.stdout
    assert b"rank 0 failed: ValueError: caf\\udce9 \\udcff (caf\\udce9 \\udcff.py, line 8)" in done.stdout
