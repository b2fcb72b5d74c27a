"""How a process of ours reads in lists of processes."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

from ice_notebook.host import title

SHOWS = """
import json, os, subprocess, sys, threading, time
import psutil
from ice_notebook.host import title

def look():
    with open("/proc/self/cmdline", "rb") as file:
        raw = file.read()
    listed = subprocess.run(["ps", "-o", "args=", "-p", str(os.getpid())], capture_output=True, text=True).stdout.rstrip("\\n")
    with open("/proc/self/environ", "rb") as file:
        environment = file.read()
    return [os.fsdecode(raw), listed, psutil.Process().cmdline(), list(sys.orig_argv), b"HERE=yes" in environment]

if "native" in sys.argv:
    title._no_other_thread_runs = lambda: False
thread = threading.Thread(target=time.sleep, args=[0.5], daemon=True)
thread.start()
seen = []
for words in json.load(sys.stdin):
    title.show(words, may_change="may_change" in sys.argv)
    if "may_change" in sys.argv:
        title._no_other_thread_runs = lambda: False
    seen.append(look())
json.dump(seen, sys.stdout)
"""


def shown(*lines: list[str], native: bool = False, keeps: str = "") -> list[list]:
    """Return what is seen of a process that shows these, one after the other. Its own command line has room for what it shows.

    With `keeps` the first one may change later, beside threads that are not Python's.
    """
    command = [sys.executable, "-c", SHOWS, *(["native"] if native else []), *([keeps] if keeps else [])]
    environment = {"HERE": "yes", "PATH": "/bin:/usr/bin"}
    done = subprocess.run(command, input=json.dumps(lines), capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_process_shows_what_it_says_and_nothing_else_changes():
    first, second = ["python", "-u", "train.py", "--lr", "0.1 x", "\udcff"], ["python", "-m", "ice_notebook", "rank", "3", "longer"]
    for words, (raw, listed, parsed, own, has_environment) in zip([first, second], shown(first, second), strict=True):
        assert raw == "\0".join(words) + "\0"
        assert parsed == words
        assert listed.startswith(" ".join(words[:5]))
        assert own == words
        assert has_environment


def test_beside_threads_that_are_not_pythons_it_is_one_text():
    words = ["python", "-u", "train.py"]
    longer, shorter = shown([*words, "--and", "more"], words, native=True)
    assert longer[0].rstrip("\0 ") == "python -u train.py --and more"
    assert shorter[2] == words
    assert shorter[1].rstrip() == "python -u train.py"


def test_one_that_may_change_keeps_the_room_for_a_longer_one_beside_threads():
    longer = ["python", "-m", "ice_notebook", "rank", "0", "train(launcher)"]
    first, second = shown(["python", "rank"], longer, keeps="may_change")
    assert first[2] == ["python", "rank"]
    assert second[2] == longer


@pytest.mark.parametrize("native", [False, True])
def test_what_has_no_room_is_cut(native):
    long, short = shown(["python", "train.py", "x" * 5_000], ["python", "train.py"], native=native)
    assert long[1].startswith("python train.py xxx")
    assert len(long[0]) < 5_000
    assert short[2] == ["python", "train.py"]


def test_a_command_of_ours_is_one_that_a_person_would_write():
    assert title.command_of("rank", "0", "train(launcher)") == [
        sys.executable,
        "-m",
        "ice_notebook",
        "rank",
        "0",
        "train(launcher)",
    ]
    assert psutil  # the parser that tools use
