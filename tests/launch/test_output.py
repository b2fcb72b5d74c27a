"""What ranks print: every byte is in the log, in order, promptly, whoever is killed or does not listen."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from support import python, wait_until

from ice_notebook.kernel.run import Run
from ice_notebook.wire.protocol import RankExited


def test_every_byte_is_in_the_log_in_the_order_in_which_it_was_written(start, tmp_path):
    go_on = str(tmp_path / "go on")

    def work():
        import ctypes
        import os
        import sys
        import time

        libc = ctypes.CDLL(None)
        libc.printf(b"from C\n")  # not flushed: a newline is enough
        while not os.path.exists(go_on):
            time.sleep(0.01)
        for n in range(1000):
            print("out", n)
            print("err", n, file=sys.stderr)
        for n in range(100):
            libc.printf(b"C %d\n", n)
            print("Python", n)
        os.write(1, b"\xff\xfe not text \x00\n")
        sys.stdout.write("10 %\r20 %\r30 %\n")
        print("ü" * 3, "\x1b[31mred\x1b[0m", "\r\n", end="\t")
        print("\udcff")  # cannot be encoded
        return "PYTHONUNBUFFERED" in os.environ, sys.stdout.isatty(), sys.stderr.isatty()

    def epilogue():
        import sys

        sys.stdout.write("unfinished")

    def both():
        value = work()
        epilogue()
        return value

    run = start(both, n=1, dist_init="no")
    wait_until(lambda: run.output(0) == "from C\n")
    Path(go_on).touch()
    assert run.result() == (False, True, True)
    assert run.wait(60)
    expected = b"from C\n"
    expected += b"".join(b"out %d\nerr %d\n" % (n, n) for n in range(1000))
    expected += b"".join(b"C %d\nPython %d\n" % (n, n) for n in range(100))
    expected += b"\xff\xfe not text \x00\n10 %\r20 %\r30 %\n" + "üüü \x1b[31mred\x1b[0m \r\n\t\\udcff\nunfinished".encode()
    assert (run.folder / "attempt_0/0/output.log").read_bytes() == expected


def test_every_full_line_is_in_the_log_before_the_exit_of_its_rank_is_told(start, monkeypatch):
    sizes: dict[int, int] = {}
    take_event = Run.take_event

    def look_first(self, event):
        if isinstance(event, RankExited):
            sizes[event.rank] = self.output(event.rank).count("\n")
        take_event(self, event)

    monkeypatch.setattr(Run, "take_event", look_first)

    def work():
        import os
        import signal

        for n in range(20_000):
            print("line", n)
        os.kill(os.getpid(), signal.SIGKILL)

    run = start(work, dist_init="no")
    assert run.wait(60)
    killed = [rank for rank, state in run.state.ranks.items() if state.exit_code == -signal.SIGKILL]
    assert killed
    for rank in killed:
        assert sizes[rank] == 20_000
        assert run.output(rank).endswith("line 19999\n")


def test_a_flood_from_all_ranks_is_kept_whole(launch):
    def work():
        import os

        rank = os.environ["RANK"]
        for n in range(100_000):
            print(rank, n)

    run = launch(work, dist_init="no")
    for rank in range(2):
        assert run.output(rank) == "".join(f"{rank} {n}\n" for n in range(100_000))


SUSPENDED = """
import json, sys
from ice_notebook import ElasticLauncher
from ice_notebook.runs.logs import RunLogs

taken = {0: 0, 1: 0}
missed = {0: 0, 1: 0}
feed = RunLogs.feed
def count(self, attempt, rank, data, missed_bytes=0, **more):
    taken[rank] += len(data)
    missed[rank] += missed_bytes
    feed(self, attempt, rank, data, missed_bytes, **more)
RunLogs.feed = count

printed = sys.argv[1]

def work():
    import os
    for n in range(200_000):
        print("a line of some forty characters, more or less", n)
    with open(printed + os.environ["RANK"], "w"):
        pass

run = ElasticLauncher("cpu:0-1", dist_init="no", ui="none").start(work)
print(json.dumps(str(run.folder)), flush=True)
sys.stdin.readline()
run.wait()
print(json.dumps([run.phase, taken, missed]), flush=True)
"""


def test_ranks_print_on_while_the_kernel_is_suspended_and_what_it_missed_is_counted(tmp_path):
    import subprocess

    kernel = python(SUSPENDED, str(tmp_path / "printed"), stdin=subprocess.PIPE)
    try:
        folder = Path(json.loads(kernel.stdout.readline()))
        logs = [folder / f"attempt_0/{rank}/output.log" for rank in (0, 1)]
        wait_until(lambda: all(log.exists() and log.stat().st_size for log in logs))
        os.kill(kernel.pid, signal.SIGSTOP)
        wait_until(lambda: all(os.path.exists(f"{tmp_path}/printed{rank}") for rank in (0, 1)))  # they were not held up
        os.kill(kernel.pid, signal.SIGCONT)
        output, errors = kernel.communicate("\n", timeout=60)
        assert output, errors
        phase, taken, missed = json.loads(output)
        sizes = {str(rank): log.stat().st_size for rank, log in enumerate(logs)}
        assert phase == "succeeded"
        assert {rank: taken[rank] + missed[rank] for rank in taken} == sizes
        assert sum(missed.values()) > 0
        assert all(log.read_bytes().count(b"\n") == 200_000 for log in logs)
    finally:
        kernel.kill()
        kernel.wait()


# ---- redirects and tee -------------------------------------------------------------------------------------------------------------------


def files_of(run, rank) -> dict[str, str]:
    """Return the logs of a rank with what they hold."""
    return {path.name: path.read_text() for path in sorted((run.folder / f"attempt_0/{rank}").glob("*.log"))}


def shown(run, rank) -> list[str]:
    return run.logs.tail(rank, 10)


def speak():
    import ctypes
    import os
    import subprocess
    import sys

    print("out")
    print("err", file=sys.stderr)
    libc = ctypes.CDLL(None)
    libc.printf(b"C\n")
    subprocess.run("echo child; echo complaint >&2", shell=True, check=True)
    return os.isatty(1), os.isatty(2), os.ctermid()


OUT, ERR = "out\nC\nchild\n", "err\ncomplaint\n"


def test_a_redirected_stream_goes_to_its_own_file_and_is_not_shown(launch, tmp_path):
    def work():
        return speak_here()

    speak_here = by_value(speak)
    run = launch(work, n=4, dist_init="no", redirects="1:1,2:2,3:3", log_dir=str(tmp_path / "logs"), rdzv_id="job")
    assert run.phase == "succeeded", run
    assert run.folder.parent == tmp_path / "logs"
    assert run.folder.name == f"job_{run.id}"
    assert files_of(run, 0) == {"output.log": "out\nerr\nC\nchild\ncomplaint\n"}
    assert files_of(run, 1) == {"output.log": ERR, "stdout.log": OUT}
    assert files_of(run, 2) == {"output.log": OUT, "stderr.log": ERR}
    assert files_of(run, 3) == {"output.log": "", "stdout.log": OUT, "stderr.log": ERR}
    assert [shown(run, rank) for rank in range(4)] == [
        ["out", "err", "C", "child", "complaint"],
        ["err", "complaint"],
        ["out", "C", "child"],
        [],
    ]
    assert [value[:2] for _, value in sorted(run.results.items())] == [(True, True), (False, True), (True, False), (False, False)]


def test_a_teed_stream_goes_to_its_own_file_and_is_shown_too(launch):
    def work():
        return speak_here()

    speak_here = by_value(speak)
    run = launch(work, n=4, dist_init="no", tee="0:1,1:2,2:3,3:1", redirects="3:3")
    assert run.phase == "succeeded", run
    everything = ["C", "child", "complaint", "err", "out"]
    assert [sorted(shown(run, rank)) for rank in range(4)] == [everything, everything, everything, ["C", "child", "out"]]
    logs = [files_of(run, rank) for rank in range(4)]
    assert [sorted(log) for log in logs] == [
        ["output.log", "stdout.log"],
        ["output.log", "stderr.log"],
        ["output.log", "stderr.log", "stdout.log"],
        ["output.log", "stderr.log", "stdout.log"],
    ]
    for rank, log in enumerate(logs):
        assert log.get("stdout.log", OUT) == OUT
        assert log.get("stderr.log", ERR) == ERR
        assert sorted(log["output.log"].split()) == sorted(shown(run, rank))  # exactly what is shown


@pytest.mark.parametrize("streams", [0, 3])
def test_a_number_means_every_rank(launch, streams):
    def work():
        print("out")

    run = launch(work, dist_init="no", redirects=streams)
    for rank in range(2):
        assert shown(run, rank) == ([] if streams else ["out"])
        assert set(files_of(run, rank)) == ({"output.log", "stdout.log", "stderr.log"} if streams else {"output.log"})


def by_value(function):
    """Return a copy of a function that travels by value: one of this module would be imported by name."""
    import types

    copy = types.FunctionType(function.__code__, {"__builtins__": __builtins__, "__name__": "__main__"}, function.__name__)
    copy.__module__ = "__main__"
    return copy
