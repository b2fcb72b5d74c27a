"""What ranks find of limits, signals and the like: what any program finds that the notebook starts at that moment."""

from __future__ import annotations

import json
import subprocess

from support import python

START_METHOD = "spawn"  # see conftest.py


# Everything is as bad as it can be: the end of children is ignored, and whatever ends or interrupts is blocked, ignored, or both; standard
# streams are closed; no file is readable for anybody.
HOSTILE = r"""
import json, os, signal, sys
for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.umask(0o777)
said, there = os.dup(1), sys.argv[1]
for fd in (0, 1, 2):
    os.close(fd)

from ice_notebook import ElasticLauncher
def look():
    import os
    import signal

    with open("/proc/self/status") as status:
        words = dict(line.split(":\t", 1) for line in status.read().splitlines() if ":\t" in line)
    ignored = int(words["SigIgn"], 16)
    return {
        "blocked": int(words["SigBlk"], 16),
        "ignored": [number.name for number in signal.Signals if ignored >> (number - 1) & 1],
        "child": os.waitstatus_to_exitcode(os.system("exit 3")),
        "umask": os.umask(0),
    }

def work(launcher):
    import os, time
    try:
        open(there + str(launcher.rank), "w").close()
        time.sleep(60)
    finally:
        print("unwound")

def run(function, *args, **options):
    launcher = ElasticLauncher("cpu:0-1", ui="none", dist_init="no", **options).freeze()
    return launcher.start(function, *([launcher] if args else []))

found = []
for method in ("spawn", "forkserver"):
    looked = run(look, start_method=method)
    assert looked.wait(100)
    assert looked.phase == "succeeded", looked
    found.append(looked.results[0])
import time
from pathlib import Path
running = run(work, 1, start_method="forkserver")
while not all(Path(there + rank).exists() for rank in "01"):
    time.sleep(0.01)
running.stop()
assert running.wait(30)
os.write(said, json.dumps([found, [running.output(rank) for rank in (0, 1)], [running.exit_codes[rank] for rank in (0, 1)]]).encode())
os._exit(0)
"""


def test_signals_and_streams_of_whoever_started_the_notebook_change_nothing(tmp_path):
    kernel = python(HOSTILE, str(tmp_path / "there"), stdin=subprocess.DEVNULL)
    output, errors = kernel.communicate(timeout=200)
    assert kernel.returncode == 0, errors
    found, printed, codes = json.loads(output)
    for each in found:
        assert each["blocked"] == 0
        # Python ignores two, and two are those of a terminal that nobody sits at.
        assert each["ignored"] == ["SIGPIPE", "SIGTTIN", "SIGTTOU", "SIGXFSZ"]
        assert each["child"] == 3
        assert each["umask"] == 0o777
    assert [text.strip() for text in printed] == ["unwound", "unwound"], "they were interrupted, and not terminated"
    assert codes == [130, 130]


SHADOWS = """
import importlib, os, sys
NAMES = "logging signal random queue token inspect types json msgspec psutil cloudpickle numpy typing_extensions".split()
for name in NAMES:
    importlib.import_module(name)  # a notebook has them all
    with open(os.path.join(sys.argv[1], name + ".py"), "w") as module:
        module.write(f"raise RuntimeError('the {name} of the user')")
with open(os.path.join(sys.argv[1], "mine.py"), "w") as module:
    module.write("VALUE = 5")
sys.path.insert(0, sys.argv[1])

from ice_notebook import ElasticLauncher

def work():
    import sys
    import logging, mine, numpy, tabnanny
    with open("/proc/self/cmdline") as line:
        shown = line.read()
    assert not any(getattr(finder, "__name__", "") == "_Pinned" for finder in sys.meta_path)
    return [logging.getLogger().name, mine.VALUE, numpy.__version__ == sys.modules["numpy"].__version__, sys.path[0], shown]

run = ElasticLauncher("cpu", ui="none", dist_init="no").start(work)
run.wait(100)
print(run)
print(run.results[0][4])
assert run.results[0][:4] == ["root", 5, True, sys.argv[1]]
"""


def test_folders_of_the_user_with_modules_named_like_others_keep_no_launch_from_starting(tmp_path):
    kernel = python(SHADOWS, str(tmp_path), stdin=subprocess.DEVNULL)
    output, errors = kernel.communicate(timeout=120)
    assert kernel.returncode == 0, output + errors
    assert "-m ice_notebook rank 0 work()" in output.replace("\0", " ")
