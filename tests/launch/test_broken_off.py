"""Launches that are broken off: at random moments, by signals that come together, and by those that schedulers send."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interrupt_fuzzer import Fuzzer
from support import HANG_S, Kernel, wait_until

from ice_notebook.kernel.pool import STANDBY_VARIABLE

FUZZED_S = 20.0
SEED = 1


def test_a_launch_that_is_interrupted_at_any_moment_leaves_the_notebook_as_it_was():
    kernel = Kernel(env={name: value for name, value in os.environ.items() if name != STANDBY_VARIABLE})
    try:
        fuzzer = Fuzzer(SEED, kernel)
        until = time.monotonic() + FUZZED_S
        number = 0
        while time.monotonic() < until:
            fuzzer.play(number)
            number += 1
        assert fuzzer.faults == []
        assert fuzzer.launch() == ""
    finally:
        kernel.close()


SAVING = """
import os, signal, sys, time
asked = []
for name in sys.argv[1].split(","):
    signal.signal(getattr(signal, name), lambda number, _: asked.append(number))
print("ready", flush=True)
while not asked:
    time.sleep(0.1)
time.sleep(1.5)
open(f"saved.{os.environ['RANK']}", "w").write(signal.Signals(asked[0]).name)
"""


@pytest.fixture
def launcher(tmp_path: Path):
    """Return `launcher(script, *words)`, which launches a script on two ranks from a shell, and returns when both are ready."""
    started: list[subprocess.Popen[str]] = []

    def launch(text: str, *words: str) -> subprocess.Popen[str]:
        (tmp_path / "train.py").write_text(text)
        command = [sys.executable, "-m", "ice_notebook", "launch", "--nproc-per-node", "2", "--grace", "20", "train.py", *words]
        output = (tmp_path / "output").open("w")
        started.append(subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True))
        output.close()
        wait_until(lambda: (tmp_path / "output").read_text().count("ready") == 2)
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.wait()


def saved(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("saved.*")}


@pytest.mark.parametrize(
    ("handled", "sent", "statuses", "expected"),
    [
        ("SIGTERM", [signal.SIGTERM], {143}, "SIGTERM"),  # a scheduler ends the job
        ("SIGINT", [signal.SIGINT], {130}, "SIGINT"),  # Ctrl-C
        ("SIGTERM", [signal.SIGTERM, signal.SIGHUP], {143, 129}, "SIGTERM"),  # systemd ends a login session
        ("SIGTERM", [signal.SIGTERM, signal.SIGTERM], {143}, "SIGTERM"),  # a warning, and the end of the time
        ("SIGUSR1,SIGTERM", [signal.SIGUSR1], {0}, "SIGUSR1"),  # a warning that a script answers by its end
    ],
    ids=lambda given: "+".join(number.name for number in given) if isinstance(given, list) else str(given),
)
def test_a_script_that_handles_a_signal_gets_it_and_has_its_grace(launcher, tmp_path, handled, sent, statuses, expected):
    process = launcher(SAVING, handled)
    for number in sent:
        process.send_signal(number)
    assert process.wait(HANG_S) in statuses
    assert saved(tmp_path) == {f"saved.{rank}": expected for rank in range(2)}


UNWINDING = """
import os, sys, time
try:
    print("ready", flush=True)
    time.sleep(10_000)
finally:
    time.sleep(1)
    open(f"saved.{os.environ['RANK']}", "w").write("unwound")
"""


@pytest.mark.parametrize(
    "sent", [[signal.SIGTERM, signal.SIGHUP], [signal.SIGHUP, signal.SIGINT], [signal.SIGINT, signal.SIGTERM]], ids=str
)
def test_two_signals_at_once_are_one_stop(launcher, tmp_path, sent):
    process = launcher(UNWINDING)
    os.kill(process.pid, signal.SIGSTOP)  # so that both are there when it goes on
    for number in (*sent, signal.SIGCONT):
        os.kill(process.pid, number)
    assert process.wait(HANG_S) in {128 + number for number in sent}
    assert saved(tmp_path) == {f"saved.{rank}": "unwound" for rank in range(2)}
    assert "threading.py" not in (tmp_path / "output").read_text()  # the ranks' own interrupt is told, and nothing of ours


def test_a_program_is_signalled_with_what_it_has_started(launcher, tmp_path):
    (tmp_path / "inner.py").write_text(SAVING)
    shell = tmp_path / "run.sh"
    shell.write_text(f"#!/bin/sh\n{sys.executable} inner.py SIGTERM\necho never\n")
    shell.chmod(0o755)
    command = [sys.executable, "-m", "ice_notebook", "launch", "--nproc-per-node", "2", "--grace", "20", "--no-python", "./run.sh"]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output, start_new_session=True)
    wait_until(lambda: (tmp_path / "output").read_text().count("ready") == 2)
    process.terminate()
    assert process.wait(HANG_S) == 128 + signal.SIGTERM
    assert saved(tmp_path) == {f"saved.{rank}": "SIGTERM" for rank in range(2)}
