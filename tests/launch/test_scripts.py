"""Scripts, modules and programs from Python and from a terminal: what they can do, how they end, what is left of them."""

from __future__ import annotations

import contextlib
import json
import os
import py_compile
import re
import shlex
import signal
import subprocess
import sys
import termios
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyte
import pytest
from support import left_of, wait_printed, wait_until

from ice_notebook import ElasticLauncher, RunFailed
from ice_notebook.errors import ResultError
from ice_notebook.kernel.planning import make_preparation
from ice_notebook.kernel.pool import Pool, pool
from ice_notebook.kernel.run import Run
from ice_notebook.options.launch_options import LaunchOptions
from ice_notebook.options.table import Surface
from ice_notebook.tasks.scripts import read_script
from ice_notebook.ui.text_view import PREFIX_TEMPLATE


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return `script(text, name="train.py")`, which writes a script into the working directory and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "train.py") -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
        return name

    return write


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    """Return `start(*words, n=2, **options)`, which begins a run of a script on CPU ranks."""
    runs: list[Run] = []

    def begin(*words: str, n: int = 2, **options: Any) -> Run:
        asked = {"devices": f"cpu:0-{n - 1}", "ui": "none", **options}
        launcher = ElasticLauncher.of(LaunchOptions.of(asked, Surface.LINE))
        task = read_script(launcher.options, words)
        runs.append(launcher.launch(task, task.name, waits=False))
        return runs[-1]

    yield begin
    for run in runs:
        run.kill()
        assert run.wait(30)
        wait_until(lambda run=run: not left_of(run.plan.marker), 5)


@pytest.fixture
def launch(start: Callable[..., Run]) -> Callable[..., Run]:
    """Return `launch(*words, n=2, **options)`, which waits for the end of the run and never raises for it."""

    def begin_and_wait(*words: str, **options: Any) -> Run:
        run = start(*words, **options)
        assert run.wait(120)
        return run

    return begin_and_wait


# ---- what a script can do ---------------------------------------------------------------------------------------------------------------


def test_a_script_gives_values_and_exit_codes(launch, script):
    train = script(
        """
        import os, sys
        import ice_notebook
        assert "torch" not in sys.modules
        if __name__ == "__main__":
            rank = int(os.environ["RANK"])
            print("arguments", sys.argv[1:], ice_notebook.get_current_launcher().local_rank)
            if rank != 1:
                ice_notebook.set_result("an early one")
                ice_notebook.set_result({"rank": rank})
            for step in ice_notebook.get_current_launcher().progress(range(3)):
                pass
        """
    )
    run = launch(train, "--lr", "0.1", n=3)
    assert run.phase == "succeeded", run
    assert dict(run.results) == {0: {"rank": 0}, 2: {"rank": 2}}
    assert run.exit_codes == {0: 0, 1: 0, 2: 0}
    with pytest.raises(
        ResultError, match=r"The script of rank 1 returned no value: a script returns one with ice_notebook.set_result\(value\)\."
    ):
        run.results[1]
    assert run.output(1) == "arguments ['--lr', '0.1'] 1\n"
    assert repr(run).splitlines()[1:] == ["rank 0: {'rank': 0}", "rank 1: exit code 0", "rank 2: {'rank': 2}"]
    assert run.plan.name == "train.py --lr 0.1"
    assert Run.open(run.folder).exit_codes == run.exit_codes


def test_a_script_is_found_by_its_name_and_can_start_itself_anew(launch, script):
    train = script(
        """
        import os, sys
        import psutil
        if "AGAIN" not in os.environ:
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "AGAIN": "yes"})
        assert "ice_notebook" not in sys.modules
        print(psutil.Process().cmdline()[1:] == ["-u", "train.py", "--lr", "0.1 x"] == sys.orig_argv[1:], sys.argv)
        sys.exit(3 if os.environ["RANK"] == "1" else 0)
        """
    )
    run = launch(train, "--lr", "0.1 x", n=2)
    assert run.phase == "failed"
    assert run.exit_codes[1] == 3, run
    assert run.failures[1].headline == "left with exit code 3"
    assert run.output(1) == "True ['train.py', '--lr', '0.1 x']\n"


def test_a_value_is_there_when_the_call_that_gives_it_returns(launch, script):
    train = script(
        """
        import os, ice_notebook
        value = ["early"]
        ice_notebook.set_result(value)
        value.append("and changed")
        if os.environ["RANK"] == "1":
            ice_notebook.set_result("the last one")
        os._exit(0)
        """
    )
    run = launch(train)
    assert (run.phase, dict(run.results)) == ("succeeded", {0: ["early"], 1: "the last one"}), run


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), signal.SIGSEGV)", "sys.exit(3)", "1 / 0", "os._exit(4)"])
def test_a_rank_that_fails_after_it_gave_a_value_has_no_result(launch, script, ending):
    train = script(f"import os, signal, sys, ice_notebook\nice_notebook.set_result('too early')\n{ending}\n")
    run = launch(train, n=1)
    assert (run.phase, dict(run.results)) == ("failed", {})
    with pytest.raises(RunFailed):
        run.results[0]
    assert not [*Path(run.plan.shared_dir).glob("[!.]*"), *run.folder.glob("attempt_0/0/result*")]


def test_a_value_that_cannot_be_sent_is_told_and_one_after_it_counts(launch, script):
    train = script(
        """
        import os, threading, ice_notebook
        ice_notebook.set_result("an early one")
        ice_notebook.set_result(threading.Lock())
        if os.environ["RANK"] == "1":
            ice_notebook.set_result("a late one")
        """
    )
    run = launch(train)
    assert (run.phase, dict(run.results)) == ("succeeded", {1: "a late one"}), run
    with pytest.raises(ResultError, match="lock"):
        run.results[0]


def test_a_script_makes_its_own_process_group_also_after_a_restart(launch, script):
    train = script(
        """
        import os, torch, torch.distributed as dist
        assert not dist.is_initialized()
        dist.init_process_group("gloo")
        total = torch.ones(1) * (dist.get_rank() + 1)
        dist.all_reduce(total)
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os._exit(4)
        dist.destroy_process_group()
        print("total", total.item())
        """
    )
    run = launch(train, max_restarts=1)
    assert run.phase == "succeeded", run
    assert run.output(0) == run.output(1) == "total 3.0\n"


def test_processes_that_a_script_spawns_find_what_it_defines(launch, script):
    train = script(
        """
        import multiprocessing
        class Batch:
            def __init__(self, n):
                self.n = n
        def double(batch):
            return Batch(2 * batch.n)
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print("double", pool.apply(double, [Batch(21)]).n)
        """
    )
    run = launch(train, n=1)
    assert run.output(0) == "double 42\n", run


def test_archives_links_compiled_files_and_relative_imports_work(launch, script, tmp_path):
    script("from .part import word\nprint('package', word)\n", "package/__main__.py")
    script("word = 'word'\n", "package/part.py")
    script("import neighbour\nprint('beside', neighbour.name, __file__)\n", "elsewhere/real.py")
    script("name = 'neighbour'\n", "elsewhere/neighbour.py")
    (tmp_path / "link.py").symlink_to(tmp_path / "elsewhere" / "real.py")
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("__main__.py", "import inner, sys\nprint('archive', inner.x, sys.argv)\n")
        archive.writestr("inner.py", "x = 5\n")
    py_compile.compile(script("import sys\nprint('compiled', __name__, sys.argv, type(__loader__).__name__)\n"), "compiled.pyc")
    assert launch("package", module=True, n=1).output(0) == "package word\n"
    assert launch("compiled.pyc", "z", n=1).output(0) == "compiled __main__ ['compiled.pyc', 'z'] SourcelessFileLoader\n"
    assert launch("link.py", n=1).output(0) == f"beside neighbour {tmp_path}/link.py\n"
    assert launch("app.zip", "y", n=1).output(0) == "archive 5 ['app.zip', 'y']\n"


def test_what_is_printed_without_a_newline_is_seen_at_once(start, script):
    train = script("import time\nprint('waiting', end='')\ntime.sleep(1000)\n")
    wait_printed(start(train, n=1), "waiting")


def test_input_meets_its_end_and_a_breakpoint_says_a_line(launch, script):
    run = launch(script("breakpoint()\ntry:\n    input()\nexcept EOFError:\n    print('nobody')\n"), n=1)
    assert run.output(0) == "breakpoint() at <module>, line 1: ignored, a rank has no keyboard\nnobody\n"


# ---- how it ends ------------------------------------------------------------------------------------------------------------------------


def test_a_script_that_raises_is_shown_with_its_line(launch, script):
    train = script(
        """
        import os
        def step(batch):
            loss = batch / 0
            return loss
        if os.environ["RANK"] == "1":
            step(3)
        """
    )
    run = launch(train)
    error = run.exception()
    assert isinstance(error, RunFailed)
    assert str(error) == "rank 1: ZeroDivisionError: division by zero (train.py, line 4)"
    assert any(re.fullmatch(r"-+> 4     loss = batch / 0", line) for line in error.lines)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert "ZeroDivisionError: division by zero" in run.output(1)
    assert "ice_notebook" not in run.output(1)
    assert run.exit_codes[1] == 1


@pytest.mark.parametrize(
    ("ending", "code", "headline"),
    [
        ("sys.exit(7)", 7, "left with exit code 7"),
        ("sys.exit(-1)", 255, "left with exit code 255"),
        ("sys.exit(['no', 'data'])", 1, "['no', 'data'] (left with exit code 1)"),
        ("sys.exit('no data')", 1, "no data (left with exit code 1)"),
        ("os._exit(5)", 5, "left with exit code 5"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, "killed by SIGKILL (signal 9); something outside the run ended it"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -11, "killed by SIGSEGV (signal 11)"),
    ],
)
def test_a_script_that_ends_badly_is_told_by_its_exit_code(launch, script, ending, code, headline):
    run = launch(script(f"import os, signal, sys\nif True:\n    {ending}\n"), n=1)
    assert run.phase == "failed"
    assert run.exit_codes == {0: code}
    assert run.failures[0].headline.startswith(headline)
    assert "Traceback" not in run.output(0)
    if code == -11:
        assert str(run.exception()).endswith("(train.py, line 3)")


def test_a_process_that_a_script_forks_speaks_for_itself_alone(launch, script):
    train = script(
        """
        import os, sys
        for end in ("sys.exit(3)", "1 / 0", "sys.exit('a text')", "pass"):
            pid = os.fork()
            if pid == 0:
                exec(end)
                break
            print("status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        else:
            print("the parent goes on")
        """
    )
    run = launch(train, n=1)
    assert (run.phase, dict(run.exit_codes)) == ("succeeded", {0: 0})
    assert [line for line in run.output(0).splitlines() if line.startswith(("status", "the parent"))] == [
        "status 3",
        "status 1",
        "status 1",
        "status 0",
        "the parent goes on",
    ]
    assert "ZeroDivisionError" in run.output(0)
    assert "a text" in run.output(0)


@pytest.mark.parametrize("ending", ["pass", "sys.exit()", "sys.exit(256)", "os._exit(0)", "raise SystemExit"])
def test_exit_code_0_is_success_however_it_came_about(launch, script, ending):
    run = launch(script(f"import os, sys\n{ending}\n"), n=1)
    assert (run.phase, run.exit_codes, dict(run.results)) == ("succeeded", {0: 0}, {})


def test_what_record_writes_is_the_headline_and_stays_in_the_error_file(launch, script):
    train = script(
        """
        from torch.distributed.elastic.multiprocessing.errors import record
        @record
        def main():
            raise ValueError("bad loss")
        main()
        """
    )
    as_script = launch(train, n=1)
    as_program = launch(sys.executable, train, n=1, no_python=True)
    assert as_script.failures[0].headline == "ValueError: bad loss"
    assert as_program.failures[0].headline == "ValueError: bad loss (left with exit code 1)"
    for run in (as_script, as_program):
        error = (run.folder / "attempt_0" / "0" / "error.json").read_text()
        assert '"py_callstack"' in error
        assert "bad loss" in error


def test_a_hook_of_the_script_shows_its_exception(launch, script):
    train = script("import sys\nsys.excepthook = lambda kind, error, tb: print('mine:', error, tb.tb_lineno)\n1 / 0\n")
    run = launch(train, n=1)
    assert run.output(0) == "mine: division by zero 3\n"
    assert run.failures[0].headline == "ZeroDivisionError: division by zero"


# ---- stopping ---------------------------------------------------------------------------------------------------------------------------


def test_a_script_that_is_stopped_has_time_for_its_finally(start, script):
    run = start(script("import time\ntry:\n    print('in')\n    time.sleep(1000)\nfinally:\n    print('out')\n"))
    wait_printed(run, "in")
    run.stop()
    assert run.wait(30)
    assert (run.phase, run.exit_codes) == ("stopped", {0: 130, 1: 130})
    assert [run.output(rank).split("\n")[:2] for rank in (0, 1)] == [["in", "out"]] * 2


def test_a_program_gets_sigterm_first_and_sigkill_after_its_grace(start, script):
    polite = script("trap 'echo bye; exit 3' TERM\necho in\nwhile :; do sleep 0.05; done\n", "polite.sh")
    deaf = script("trap '' TERM INT\necho in\nwhile :; do sleep 0.05; done\n", "deaf.sh")
    first = start("sh", polite, n=1, no_python=True, grace=60)
    second = start("sh", deaf, n=1, no_python=True, grace=0.3)
    for run in (first, second):
        wait_printed(run, "in")
        run.stop()
    for run in (first, second):
        assert run.wait(30)
        assert run.phase == "stopped"
    # What it had started got the signal as well, of which a shell may say a word.
    assert (first.output(0).replace("Terminated\n", ""), first.exit_codes) == ("in\nbye\n", {0: 3})
    assert second.exit_codes == {0: -9}


def test_a_program_is_not_missed_when_all_its_output_goes_to_files(launch):
    run = launch("sh", "-c", "echo $LOCAL_RANK; sleep 1; echo $1 >&2", "-", "x${local_rank}", no_python=True, redirects="3")
    assert run.phase == "succeeded", run
    folder = run.folder / "attempt_0"
    assert [(folder / str(rank) / "stdout.log").read_text() for rank in (0, 1)] == ["0\n", "1\n"]
    assert [(folder / str(rank) / "stderr.log").read_text() for rank in (0, 1)] == ["x0\n", "x1\n"]


def test_a_program_that_is_gone_when_ranks_start_is_named(start, script, tmp_path):
    program = script("#!/no/such/interpreter\n", "program")
    (tmp_path / program).chmod(0o700)
    run = start("./program", n=1, no_python=True)
    assert run.wait(60)
    assert run.failures[0].headline == "ScriptError: There is no program './program' to start: No such file or directory."


# ---- the command line -------------------------------------------------------------------------------------------------------------------


def ice_notebook(*words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ice_notebook", "launch", "--devices=cpu:0-1", *words]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True, **options}
    return subprocess.Popen(command, text=True, **settings)


def test_lines_have_their_rank_and_the_status_is_that_of_the_rank_that_failed_first(script, tmp_path):
    train = script("import os, sys, time\nprint('hello')\nif os.environ['RANK'] == '1':\n    sys.exit(7)\ntime.sleep(1000)\n")
    process = ice_notebook("--log-dir", "logs", train, env={**os.environ, "TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")})
    shown, errors = process.communicate()
    assert process.returncode == 7
    assert sorted(shown.splitlines()[1:3]) == ["[0] hello", "[1] hello"]
    assert shown.splitlines()[-2:] == ["rank 1 failed: left with exit code 7 (train.py, line 4)", "run: failed"]
    reason, place = errors.splitlines()
    assert reason == "ice_notebook: rank 1: left with exit code 7 (train.py, line 4)", "whoever reads the errors alone knows why"
    assert re.fullmatch(r"ice_notebook: logs are in .*/logs/none_\S+", place)
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert (message["message"], message["errorCode"]) == ("left with exit code 7", 7)


@pytest.mark.parametrize(
    ("words", "text", "status"),
    [
        ([], "print('well')", 0),
        ([], "import os; os.kill(os.getpid(), 9)", 137),
        (
            [],
            "import os, sys\nif 'AGAIN' in os.environ: sys.exit(4)\nos.execve(sys.executable, sys.orig_argv, {**os.environ, 'AGAIN': 'yes'})",
            4,
        ),
        (["--timeout", "0.5", "--ui", "none"], "import time; time.sleep(1000)", 124),
    ],
)
def test_the_status_says_what_happened(script, words, text, status):
    process = ice_notebook(*words, script(text))
    shown, errors = process.communicate()
    assert process.returncode == status, shown + errors


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [
        (signal.SIGINT, 130, "run: stopped by an interrupt"),
        (signal.SIGTERM, 143, "run: stopped by a signal to its launcher"),
        (signal.SIGHUP, 129, "run: stopped by a signal to its launcher"),
    ],
)
def test_a_signal_to_the_launcher_stops_the_run_in_order(script, number, status, word):
    train = script("import time\ntry:\n    print('in')\n    time.sleep(1000)\nfinally:\n    print('out')\n")
    process = ice_notebook("--grace", "60", train)
    shown = ""
    while shown.count("] in") < 2:
        shown += process.stdout.readline()
    process.send_signal(number)
    rest, errors = process.communicate()
    assert process.returncode == status, rest + errors
    assert "[0] out" in rest
    assert "[1] out" in rest
    assert rest.splitlines()[-1] == word
    assert errors == ""


def test_a_second_interrupt_kills(script):
    train = script(
        "import signal, time\nsignal.signal(signal.SIGINT, lambda *_: print('asked'))\nprint('in')\nwhile True:\n    pass\n"
    )
    process = ice_notebook("--grace", "1000", train)
    shown = ""
    for word in ("] in", "] asked"):
        while shown.count(word) < 2:
            shown += process.stdout.readline()
        process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130


def test_a_reader_that_goes_away_ends_the_run_in_order(script, tmp_path):
    train = script(
        """
        import os, time
        print("in")
        try:
            while True:
                print("more")
                time.sleep(0.01)
        finally:
            open("out." + os.environ["RANK"], "w").close()
        """
    )
    process = ice_notebook("--log-dir", "logs", "--grace", "60", train)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""
    process.stderr.close()
    (folder,) = (tmp_path / "logs").iterdir()
    run = Run.open(folder)
    assert left_of(run.plan.marker) == []
    assert repr(run).splitlines()[1] == "stopped because nobody reads its output"
    assert sorted(path.name for path in tmp_path.glob("out.*")) == ["out.0", "out.1"]


def test_streams_go_where_those_of_the_launcher_go_and_are_what_they_are(script, tmp_path):
    train = script(
        """
        import os, sys
        for n in range(1000):
            print("out", n, sys.stdout.isatty())
            print("err", n, sys.stderr.isatty(), file=sys.stderr)
        os.system("echo out of a child; echo err of a child >&2")
        """
    )
    process = ice_notebook("--log-dir", "logs", "--local-rank", "1", train, env={**os.environ, PREFIX_TEMPLATE: "<$local_rank> "})
    shown, errors = process.communicate()
    assert shown.splitlines()[1:-1] == [*(f"<1> out {n} False" for n in range(1000)), "<1> out of a child"]
    assert errors.splitlines() == [*(f"<1> err {n} False" for n in range(1000)), "<1> err of a child"]
    (folder,) = (tmp_path / "logs").iterdir()
    logged = [sorted((folder / "attempt_0" / str(rank) / "output.log").read_text().splitlines()) for rank in (0, 1)]
    assert logged[0] == logged[1] == sorted(line.removeprefix("<1> ") for line in [*shown.splitlines()[1:-1], *errors.splitlines()])


def test_a_terminal_is_one_for_ranks_too_as_wide_as_it_is_beside_the_labels(script):
    train = script(
        """
        import os, signal, sys
        print("size", *os.get_terminal_size(), sys.stderr.isatty())
        signal.sigwait({signal.SIGWINCH})
        print("size", *os.get_terminal_size(2))
        print("x" * os.get_terminal_size().columns)
        """
    )
    train = script("import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})\n" + (Path(train)).read_text())
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (30, 100))
    process = ice_notebook(train, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"})
    os.close(slave)
    shown = b""
    while shown.count(b"size 96 30 True") < 2:
        shown += os.read(master, 1 << 16)
    termios.tcsetwinsize(master, (20, 50))
    with contextlib.suppress(OSError):  # nobody writes to it any more
        while new := os.read(master, 1 << 16):
            shown += new
    assert process.wait() == 0
    os.close(master)
    screen = pyte.Screen(50, 20)
    pyte.ByteStream(screen).feed(shown.partition(b"size 96 30 True")[2].rpartition(b"size 96 30 True")[2])
    lines = [line.rstrip() for line in screen.display if line.strip()]
    assert sorted(lines)[-5:-1] == ["[0] size 46 20", "[0] " + "x" * 46, "[1] size 46 20", "[1] " + "x" * 46]
    assert lines[-1] == "run: succeeded"


def test_an_interrupt_that_ends_the_reader_too_leaves_ranks_their_grace(script, tmp_path):
    train = script(
        """
        import os, time
        try:
            print("in")
            time.sleep(1000)
        finally:
            for n in range(20):
                print("cleaning up")
                time.sleep(0.01)
            open("out." + os.environ["RANK"], "w").close()
        """
    )
    command = shlex.join([sys.executable, "-m", "ice_notebook", "launch", "--devices=cpu:0-1", "--grace", "60", train])
    shell = subprocess.Popen(
        ["sh", "-c", f"{{ {command}; echo $? > status; }} 2>&1 | tee log"], stdout=subprocess.DEVNULL, start_new_session=True
    )
    wait_until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text().count("] in") == 2)
    os.killpg(shell.pid, signal.SIGINT)
    wait_until(lambda: len([*tmp_path.glob("out.*")]) == 2)
    shell.wait(60)


@pytest.mark.parametrize("place", [">&-", "> /dev/full", "> shown"])
def test_what_cannot_be_shown_does_not_keep_a_run_from_being_done(script, tmp_path, place):
    train = script("import os\nprint('a → b')\nopen('out.' + os.environ['RANK'], 'w').close()\n")
    command = shlex.join([sys.executable, "-m", "ice_notebook", "launch", "--devices=cpu:0-1", train])
    done = subprocess.run(
        ["sh", "-c", f"{command} {place}"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len([*tmp_path.glob("out.*")]) == 2
    if "full" in place:
        said = (
            r"ice_notebook: standard output cannot be written: No space left on device\. What was to be shown is in \S+/cache/\S+\n"
        )
        assert re.fullmatch(said, done.stderr)
    else:
        assert done.stderr == ""
    if "shown" in place:
        assert (tmp_path / "shown").read_text().splitlines()[1:] == ["[0] a \\u2192 b", "[1] a \\u2192 b", "run: succeeded"]


def test_a_script_by_its_absolute_path_may_run_in_ranks_that_stand_by(launch, script, tmp_path, monkeypatch):
    train = script(
        """
        import sys
        had_torch = "torch" in sys.modules
        import ice_notebook
        if __name__ == "__main__":
            ice_notebook.set_result((had_torch, sys.argv, __file__, sys.path[0]))
        """
    )
    pool().stop()
    standing = Pool()
    monkeypatch.setattr("ice_notebook.kernel.pool._pool_of", lambda _pid: standing)
    standing.prepare(make_preparation(2))
    wait_until(lambda: standing.describe().startswith("2 ranks stand by: ready"))
    fresh = launch(train, "--lr", "1")
    path = str(tmp_path / train)
    assert dict(fresh.results) == dict.fromkeys(range(2), (False, [train, "--lr", "1"], path, str(tmp_path)))
    warm = launch(path, "--lr", "1", run_path=True)
    assert warm.state.attempts[0].start == "standby", warm.plan.start_note
    assert dict(warm.results) == dict.fromkeys(range(2), (True, [path, "--lr", "1"], path, str(tmp_path)))
    forked = launch(path, "--lr", "1", n=1, run_path=True, start_method="forkserver")
    assert dict(forked.results) == {0: (True, [path, "--lr", "1"], path, str(tmp_path))}, forked
    standing.stop()


def test_a_launch_from_inside_a_rank_is_refused(launch, script):
    script("print('inner')\n", "inner.py")
    train = script(
        "import subprocess, sys\nprint(subprocess.run([sys.executable, '-m', 'ice_notebook', 'launch', 'inner.py']).returncode)\n"
    )
    run = launch(train, n=1)
    assert run.output(0).splitlines()[-1] == "2"
    assert "A launch from inside rank 0 of a run is not possible" in run.output(0)
