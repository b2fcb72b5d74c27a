"""The form of a library's own, private things: where it is another one than the one that is known, the user hears of it once."""

from __future__ import annotations

import functools
import warnings

from ice_notebook.errors import UnknownFormWarning
from ice_notebook.host import libraries


@functools.cache
def note_unknown_form(library: str, thing: str, effect: str) -> None:
    """Warn, once, that a library has changed something private that this version relies on, and what comes of it."""
    warnings.warn(UnknownFormWarning.of(library, libraries.version(library), thing, effect), stacklevel=2)
