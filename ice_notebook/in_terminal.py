"""A launch in a terminal: shown until it is over, stopped in order by signals, and told by an exit status.

It has a module of its own so that help and refusals, in `cli`, do not wait for what a launch needs.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ice_notebook import exits
from ice_notebook.errors import RunFailed
from ice_notebook.launch_options import LaunchOptions
from ice_notebook.launcher import ElasticLauncher
from ice_notebook.run import Run
from ice_notebook.scripts import read_script
from ice_notebook.state import Phase
from ice_notebook.watching import Terminated

OK, FAILED, TIMED_OUT = 0, 1, 124  # the last is that of timeout(1)
BY_SIGNAL = 128  # and the number of the signal, as in a shell


def launch(options: LaunchOptions, words: Sequence[str]) -> int:
    """Launch what the words behind the options say, show it until it is over, and return the exit status.

    Raises:
        IceNotebookError: it cannot be launched as asked.
        BrokenPipeError: nobody reads what is shown any more, as with `| head`; the run is over.
    """
    launcher = ElasticLauncher.of(options, is_for_script=True)
    task = read_script(launcher.options, words)
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
            return BY_SIGNAL + (arrived[0] if arrived else signal.SIGINT)
        except BrokenPipeError:
            for run in runs:
                run.kill()
                run.wait()
            raise
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
