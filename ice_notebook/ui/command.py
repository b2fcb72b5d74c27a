"""The first lines of the command, before all that it imports: an interrupt ends it without a word as long as there is nothing to end in order."""

from __future__ import annotations

import signal
from typing import NoReturn

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> NoReturn:
    """Do what this process's command line says, and leave with its exit status."""
    from ice_notebook.ui import cli  # noqa: PLC0415 - after the line above

    cli.main()
