"""The command line: what it asks for, its help, and the sentences of what cannot be done. `in_terminal` launches."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from ice_notebook._version import __version__
from ice_notebook.errors import IceNotebookError, OptionError, ScriptError, options_with_dashes
from ice_notebook.host import signals
from ice_notebook.options.help_pages import columns, fill, help_text, join_help
from ice_notebook.options.join_options import JOIN_TABLE
from ice_notebook.options.launch_options import TABLE, LaunchOptions
from ice_notebook.options.line import asks_for_help, read_command, read_environment
from ice_notebook.options.table import Surface
from ice_notebook.ui.launcher_error import leave_failure

_OK, _FAILED, _USAGE, _NO_READER = 0, 1, 2, 128 + signal.SIGPIPE
_HELP_WORDS = ("-h", "--help", "help")
_HELP = """\
ice_notebook launch [--option VALUE ...] script.py [argument ...]

Launch multi-process PyTorch under torch's elastic agent: here in a terminal, as torchrun does, or from a notebook (%load_ext ice_notebook, then
%%elastic_launch).

    ice_notebook launch --nproc-per-node 2 train.py --lr 0.1

    ice_notebook launch --help     every option, and the exit status
    ice_notebook join HOST:PORT    take part in a run that a notebook on another machine has started
    ice_notebook --version         the version"""


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Do what a command line says, and leave with its exit status. `words` are those of this process unless given."""
    words = sys.argv[1:] if words is None else words
    signals.reset(but=signals.A_SHELLS)
    open_standard_streams()
    with options_with_dashes():
        try:
            sys.exit(_do(words))
        except IceNotebookError as error:
            _complain(error)
            leave_failure(f"{type(error).__name__}: {error}", exit_code=_USAGE)
            sys.exit(_USAGE)
        except BrokenPipeError:
            _forget_output()
            sys.exit(_NO_READER)


def open_standard_streams() -> None:
    """See that there are three standard streams, and that what they cannot encode is written in another way instead of ending the command.

    Without one, as daemons start programs, the next file that is opened would be in its place.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _do(words: Sequence[str]) -> int:
    if not words or words[0] in _HELP_WORDS:
        return _show(fill(_HELP, _width()), _OK if words else _USAGE)
    if words[0] == "--version":
        return _show(f"ice_notebook {__version__}", _OK)
    if words[0] == "join":
        if asks_for_help(words[1:], JOIN_TABLE, Surface.CLI) or asks_for_help(words[2:], JOIN_TABLE, Surface.CLI):
            return _show(join_help(_width()), _OK)
        from ice_notebook.ui import join  # noqa: PLC0415 - cryptography is imported for runs on several machines only

        _have_interrupts_raise()
        return join.main(words[1:])
    if words[0] != "launch":
        raise OptionError.no_command(words[0], ["launch", "join"])
    if asks_for_help(words[1:], TABLE, Surface.CLI):
        return _show(help_text(Surface.CLI, _width()), _OK)
    status = _launch(words[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # how it ended is settled
    return status


def _launch(words: Sequence[str]) -> int:
    values, rest = read_command(words, TABLE)
    others = read_environment(os.environ, TABLE, given=values)
    try:
        options = LaunchOptions.of({**values, **{name: value for name, (_, value) in others.items()}}, Surface.CLI)
        options.validate_by_hand()
    except OptionError as error:
        raise error.from_environment(variable for variable, _ in others.values()) from None
    from ice_notebook.ui.in_terminal import launch  # noqa: PLC0415 - help and refusals of options must not wait for what it needs

    _have_interrupts_raise()
    return launch(options, rest)


def _have_interrupts_raise() -> None:
    """Have Ctrl-C raise KeyboardInterrupt, as Python does unless it is ignored: until now it has ended the process without a word."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _complain(error: IceNotebookError) -> None:
    excerpt = error.excerpt if isinstance(error, ScriptError) else ()
    for line in (*excerpt, f"ice_notebook: {error}"):
        with contextlib.suppress(OSError):  # nobody reads it
            print(line, file=sys.stderr)


def _show(text: str, status: int) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _forget_output()
    except OSError as error:
        _forget_output()
        print(f"ice_notebook: The help cannot be written: {error.strerror}.", file=sys.stderr)
        return _FAILED
    return status


def _width() -> int:
    return columns(shutil.get_terminal_size().columns)


def _forget_output() -> None:
    """Have Python's last flush go nowhere, for it would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
