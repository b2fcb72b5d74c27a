"""`ice_notebook launch …` in a terminal: a command line to a launch, and how it ended to an exit status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from ice_notebook import __version__, exits
from ice_notebook.errors import IceNotebookError, OptionError, RunFailed, ScriptError
from ice_notebook.launch_options import TABLE, LaunchOptions, help_text
from ice_notebook.launcher import ElasticLauncher
from ice_notebook.line import read_command
from ice_notebook.options import Surface
from ice_notebook.run import Run
from ice_notebook.scripts import read_script
from ice_notebook.state import Phase
from ice_notebook.watching import Terminated

OK, FAILED, USAGE, TIMED_OUT = 0, 1, 2, 124  # the last is that of timeout(1)
_BY_SIGNAL = 128  # and the number of the signal, as in a shell
_HELP_WORDS = ("-h", "--help", "help")
_HELP = """\
ice_notebook launch [--option VALUE ...] script.py [argument ...]

Launch multi-process PyTorch under torch's elastic agent: here in a terminal, as torchrun does, or
from a notebook (%load_ext ice_notebook, then %%elastic_launch).

    ice_notebook launch --nproc-per-node 2 train.py --lr 0.1

    ice_notebook launch --help     every option, and the exit status
    ice_notebook join HOST:PORT    take part in a run that a notebook on another machine has started
    ice_notebook --version         the version"""


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Do what a command line says, and leave with its exit status. `words` are those of this process unless given."""
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in _HELP_WORDS:
        _leave(_HELP, OK if words else USAGE)
    if words[0] == "--version":
        _leave(f"ice_notebook {__version__}", OK)
    try:
        if words[0] == "join":
            from ice_notebook.nodes import join  # noqa: PLC0415 - cryptography is imported for runs on several machines only

            sys.exit(join.main(words[1:]))
        if words[0] != "launch":
            raise OptionError.no_command(words[0], ["launch", "join"])
        if words[1:2] and words[1] in _HELP_WORDS[:2]:
            _leave(help_text(Surface.CLI), OK)
        status = launch(words[1:])
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # how it ended is settled
        sys.exit(status)
    except IceNotebookError as error:
        _complain(error)
        sys.exit(USAGE)


def launch(words: Sequence[str]) -> int:
    """Launch what the words behind `launch` say, show it until it is over, and return the exit status.

    Raises:
        IceNotebookError: it cannot be launched as asked.
    """
    values, rest = read_command(words, TABLE)
    launcher = ElasticLauncher.of(LaunchOptions.of(values, Surface.CLI), is_for_script=True)
    task = read_script(launcher.options, rest)
    runs: list[Run] = []
    with _signals_stop() as arrived:
        try:
            launcher.launch(task, task.name, waits=True, on_run=runs.append)
        except RunFailed as error:
            run: Run = error.run
            if launcher.options.ui == "none":
                print(f"ice_notebook: {error}", file=sys.stderr)
            print(f"ice_notebook: logs are in {run.folder}", file=sys.stderr)
            return status_of_failure(run)
        except KeyboardInterrupt:
            return _BY_SIGNAL + (arrived[0] if arrived else signal.SIGINT)
        except BrokenPipeError:
            # Nobody reads what is shown any more, as with `| head`.
            for run in runs:
                run.kill()
                run.wait()
            _forget_output()
            return _BY_SIGNAL + signal.SIGPIPE
    return OK


def status_of_failure(run: Run) -> int:
    """Return the exit status of a run that failed: that of the rank that failed first, where one did."""
    if run.state.stop_reason == "timeout":
        return TIMED_OUT
    first = next(iter(run.failures), None)
    if run.phase is not Phase.FAILED or first is None:
        return FAILED
    code = run.exit_codes.get(first) if run.failures[first].exit_code is None else run.failures[first].exit_code
    return exits.shell_status(code) if code else FAILED


@contextmanager
def _signals_stop() -> Iterator[list[int]]:
    """Have SIGTERM and SIGHUP stop the run in order, as Ctrl-C does, and yield the list of those that have come.

    One that is ignored, as under nohup, stays so.
    """
    arrived: list[int] = []

    def stop(number: int, _frame: object) -> None:
        arrived.append(number)
        raise Terminated

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield arrived
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _complain(error: IceNotebookError) -> None:
    excerpt = error.excerpt if isinstance(error, ScriptError) else ()
    for line in (*excerpt, f"ice_notebook: {error}"):
        print(line, file=sys.stderr)


def _leave(text: str, status: int) -> NoReturn:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _forget_output()
    sys.exit(status)


def _forget_output() -> None:
    """Have Python's last flush go nowhere, for it would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
