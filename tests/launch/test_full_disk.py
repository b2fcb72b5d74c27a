"""A run whose output fills the disk of its folder: it goes on, and everything says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from disks import FULL, mounted, needs_root
from support import wait_until

from ice_notebook.kernel.run import Run
from ice_notebook.wire import protocol as p

MISSING = f"of its output is missing in its log file: {FULL}"


@pytest.mark.root
@needs_root
def test_a_full_disk_loses_output_and_nothing_else_and_says_how_much(start: Any, tmp_path: Path):
    disk, gate = tmp_path / "disk", tmp_path / "gate"
    with mounted(disk, 4):
        filler = disk / "filler"
        filler.write_bytes(bytes(1 << 20))

        def flood() -> int:
            import os
            import time

            if int(os.environ["RANK"]):
                return 1
            for n in range(100_000):
                print(f"line {n} of some words that make it longer")
            print("all is printed")
            while not gate.exists():
                time.sleep(0.01)
            for n in range(1_000):
                print(f"after {n}")
            return 0

        run: Run = start(flood, log_dir=str(disk), dist_init="no")
        wait_printed_live(run, "all is printed")
        filler.unlink()
        gate.touch()
        assert run.wait(60)
        assert run.phase == "succeeded", run
        assert dict(run.results) == {0: 0, 1: 1}

        output = run.output(0)
        lost = run.state.ranks[0].lost_output_bytes
        printed = sum(len(f"line {n} of some words that make it longer\n") for n in range(100_000)) + len("all is printed\n")
        assert 0 < lost < printed
        first, _, rest = output.partition("…")
        assert len(first.rstrip("\r\n")) == pytest.approx(printed - lost, abs=2)
        assert rest.splitlines()[1:1001] == [f"after {n}" for n in range(1_000)], "what found room again is all there"
        assert rest.splitlines()[-1].endswith(MISSING)
        for text in (repr(run), run._repr_html_()):
            assert MISSING in text
        # What views read back is under the numbers that they have shown it with.
        end = run.logs.since({}).chunks[-1].end
        assert run.logs.read_back(0, end - 1_000, 2) == ["after 0", "after 1"]
        assert run.logs.read_back(0, 5, 1) == ["line 5 of some words that make it longer"]
        # The journal has everything, and its end.
        opened = Run.open(run.folder)
        assert repr(opened) == repr(run)
        events = [type(event) for event in run._folder.read_events()]
        assert events[0] is p.RunBegun
        assert events[-1] is p.RunEnded


def wait_printed_live(run: Run, text: str) -> None:
    """Wait until a rank has printed a text, which may be nowhere but in what is shown live."""
    wait_until(lambda: any(text in line for chunk in run.logs.since({}).chunks for line in chunk.lines))


@pytest.mark.root
@needs_root
def test_a_disk_that_stays_full_is_told_in_a_terminal_and_by_the_next_process(tmp_path: Path):
    script = tmp_path / "flood.py"
    script.write_text("for n in range(100_000):\n    print('line', n, 'of some words that make it longer')\n")
    with mounted(tmp_path / "disk", 1):
        command = [sys.executable, "-m", "ice_notebook", "launch", "--nproc-per-node", "1", "--log-dir", str(tmp_path / "disk")]
        done = subprocess.run(
            [*command, str(script)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        *_, missing, last = done.stdout.splitlines()
        assert missing.startswith("rank 0: ")
        assert missing.endswith(MISSING)
        assert last == "run: succeeded"
        assert "[0] line 99999 of some words that make it longer" in done.stdout
        (folder,) = (tmp_path / "disk").iterdir()
        assert missing in repr(Run.open(folder))
