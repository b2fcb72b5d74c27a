"""The command line: what it asks for, its help, and the sentences of what cannot be done. `in_terminal` launches."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from ice_notebook import __version__
from ice_notebook.errors import IceNotebookError, OptionError, ScriptError
from ice_notebook.launch_options import TABLE, LaunchOptions, help_text
from ice_notebook.line import read_command
from ice_notebook.options import Surface

_OK, _USAGE, _NO_READER = 0, 2, 128 + signal.SIGPIPE
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
        _leave(_HELP, _OK if words else _USAGE)
    if words[0] == "--version":
        _leave(f"ice_notebook {__version__}", _OK)
    try:
        if words[0] == "join":
            from ice_notebook.nodes import join  # noqa: PLC0415 - cryptography is imported for runs on several machines only

            sys.exit(join.main(words[1:]))
        if words[0] != "launch":
            raise OptionError.no_command(words[0], ["launch", "join"])
        if words[1:2] and words[1] in _HELP_WORDS[:2]:
            _leave(help_text(Surface.CLI), _OK)
        status = _launch(words[1:])
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # how it ended is settled
        sys.exit(status)
    except IceNotebookError as error:
        _complain(error)
        sys.exit(_USAGE)
    except BrokenPipeError:
        _forget_output()
        sys.exit(_NO_READER)


def _launch(words: Sequence[str]) -> int:
    values, rest = read_command(words, TABLE)
    options = LaunchOptions.of(values, Surface.CLI).validate_by_hand()
    from ice_notebook.in_terminal import launch  # noqa: PLC0415 - help and refusals of options must not wait for what it needs

    return launch(options, rest)


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
