"""What somebody else with the same home does to a run: another notebook, after the clock was set, in another container, on another machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from support import left_of, wait_printed

from ice_notebook.kernel.run import Run

CLEAN_UP = "from ice_notebook.runs import upkeep; upkeep.clean_up(keep=0)"
CONTAINER = ["--pid", "--fork", "--mount-proc"]
# Each has a mount namespace of its own; what is mounted there is seen by nobody else.
SURROUNDINGS = {
    "another notebook": ([], "true"),
    "after the clock was set": ([], "sed 's/^btime .*/btime 1/' /proc/stat > stat && mount --bind stat /proc/stat"),
    "in another container": (CONTAINER, "true"),
    "on another machine": (
        CONTAINER,
        "echo 00000000-0000-4000-8000-000000000000 > boot && mount --bind boot /proc/sys/kernel/random/boot_id && hostname elsewhere",
    ),
}

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, to play another machine"),
]


def look_from(where: str, folder: str) -> None:
    """Have a kernel there do what it does at its first launch."""
    flags, prepare = SURROUNDINGS[where]
    script = f'{prepare} && exec "$0" -c "$1"'
    command = ["unshare", "--mount", "--uts", "--propagation", "private", *flags, "sh", "-c", script, sys.executable, CLEAN_UP]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode and "not permitted" in done.stderr:
        pytest.skip(f"this machine does not allow it: {done.stderr}")
    assert done.returncode == 0, done.stderr


def test_neither_a_run_nor_its_values_are_taken_for_abandoned(start, launch, tmp_path):
    def work():
        import time

        print("ready")
        time.sleep(10_000)

    def give(launcher):
        return launcher.rank

    from ice_notebook import ElasticLauncher

    over = launch(give, ElasticLauncher(), dist_init="no")
    run = start(work, dist_init="no")
    wait_printed(run, "ready")
    for where in SURROUNDINGS:
        look_from(where, str(tmp_path))
        assert not run.done(), where
        assert len(left_of(run.plan.marker)) >= 3, where
        assert [event for event in run._folder.read_events() if type(event).__name__ == "RunEnded"] == [], where
        assert over._shared.path.exists(), where
        assert over.folder.exists(), where
    assert dict(over.results) == {0: 0, 1: 1}
    run.stop()
    assert run.wait(30)
    assert Run.open(run.folder).phase == "stopped"
