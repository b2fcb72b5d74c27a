"""A launch in a terminal: shown until it is over, stopped in order by signals, and told by an exit status.

It has a module of its own so that help and refusals, in `cli`, do not wait for what a launch needs.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence

from ice_notebook.errors import RunFailed
from ice_notebook.host.interrupts import held
from ice_notebook.kernel.run import Run
from ice_notebook.options.launch_options import LaunchOptions
from ice_notebook.runs import exits
from ice_notebook.runs.report import headline, loss_sentences
from ice_notebook.runs.state import Phase
from ice_notebook.runs.store import RunFolder
from ice_notebook.tasks.scripts import read_script
from ice_notebook.ui.launcher import ElasticLauncher
from ice_notebook.ui.launcher_error import leave_failure
from ice_notebook.ui.outlet import is_same_place
from ice_notebook.ui.text_view import size_beside_labels
from ice_notebook.ui.watching import RELAYED
from ice_notebook.wire import protocol as p

OK, FAILED, TIMED_OUT = 0, 1, 124  # the last is that of timeout(1)
BY_SIGNAL = 128  # and the number of the signal, as in a shell


def launch(options: LaunchOptions, words: Sequence[str]) -> int:
    """Launch what the words behind the options say, show it until it is over, and return the exit status.

    Raises:
        IceNotebookError: it cannot be launched as asked.
        BrokenPipeError: nobody reads what is shown any more, as with `| head`; the run was stopped for it.
    """
    launcher = ElasticLauncher.of(options, is_for_script=True)
    task = read_script(launcher.options, words)
    runs: list[Run] = []
    with held(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *RELAYED) as interrupts:
        try:
            launcher.launch(
                task,
                task.name,
                waits=True,
                on_run=runs.append,
                interrupts=interrupts,
                wire=lambda n_ranks: _wiring(launcher.options, n_ranks),
            )
        except RunFailed as error:
            run: Run = error.run
            if launcher.options.ui == "none" or not is_same_place(sys.stdout, sys.stderr):
                say(str(error))
            say(f"logs are in {run.folder}")
            _leave_error(run, str(error))
            return status_of_failure(run)
        except KeyboardInterrupt:
            for run in runs:
                _leave_error(run, f"the run was {headline(run.plan, run.state)}")
            return BY_SIGNAL + next((number for number in interrupts.arrived if number not in RELAYED), signal.SIGINT)
        finally:
            for run in runs:
                if run.unshown:
                    say(f"standard output cannot be written: {run.unshown}. What was to be shown is in {run.folder}")
                for line in loss_sentences(run.state) if launcher.options.ui == "none" or run.unshown else ():
                    say(line)
    return OK


def _wiring(options: LaunchOptions, n_ranks: int) -> p.Wiring:
    """Return what the streams of ranks are: what those of this command are, so that programs in them do what they do without us.

    A terminal is as wide as this one beside the labels. What goes to two places comes by two streams, as what is teed does.
    """
    shown = options.ui != "none"
    has_two_places = shown and not is_same_place(sys.stdout, sys.stderr)
    is_teed = bool(options.tee if isinstance(options.tee, int) else any(options.tee.values()))
    columns, rows = size_beside_labels(sys.stdout if sys.stdout.isatty() else sys.stderr, n_ranks * options.nnodes[1], options.role)
    return p.Wiring(
        stdout_is_pipe=not sys.stdout.isatty(),
        is_apart=has_two_places or is_teed,
        stderr_is_pipe=not sys.stderr.isatty(),
        columns=columns,
        rows=rows,
    )


def say(text: str) -> None:
    """Tell whoever reads the errors of this command, if anybody does."""
    with contextlib.suppress(OSError, ValueError):
        print(f"ice_notebook: {text}", file=sys.stderr, flush=True)


def _leave_error(run: Run, text: str) -> None:
    """Leave why the run ended where torchrun would."""
    attempt = run.state.attempt
    first = next(iter(run.failures), None)
    if attempt is None or first is None:
        leave_failure(text)
        return
    failure = run.failures[first]
    rank_file = RunFolder(run.folder).error_file(attempt.number, first)
    code = failure.exit_code if failure.exit_code is not None else run.exit_codes.get(first)
    leave_failure(failure.headline, rank_file, exit_code=code, call_stack=failure.traceback)


def status_of_failure(run: Run) -> int:
    """Return the exit status of a run that failed: that of the rank that failed first, where one did."""
    if run.state.stop_reason is p.StopReason.TIMEOUT:
        return TIMED_OUT
    first = next(iter(run.failures), None)
    if run.phase is not Phase.FAILED or first is None:
        return FAILED
    code = run.exit_codes.get(first) if run.failures[first].exit_code is None else run.failures[first].exit_code
    return exits.shell_status(code) if code else FAILED
