"""How sentences name things: an option as it is written where the sentence is read, a list, a size, an error of the system."""

from __future__ import annotations

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

_has_dashes: ContextVar[bool] = ContextVar("options are written with dashes", default=False)
_IN_A_SHELL = {"rdzv_configs": "rdzv_conf"}  # torchrun's name, where that is another one than ice-learn's
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_IN_THE_WAY = frozenset({errno.EEXIST, errno.ENOTDIR, errno.EISDIR})


@contextlib.contextmanager
def options_with_dashes() -> Iterator[None]:
    """Have sentences name options as a shell's command line does: `--max-restarts=2`."""
    before = _has_dashes.set(True)
    try:
        yield
    finally:
        _has_dashes.reset(before)


def written(option: str, value: object = None) -> str:
    """Return an option, or an option with its value, as it is written where the sentence is read: `max_restarts=2`."""
    name = f"--{_IN_A_SHELL.get(option, option).replace('_', '-')}" if _has_dashes.get() else option
    return name if value is None else f"{name}={value}"


def join(words: Iterable[object], conjunction: str = "and") -> str:
    """Return the words as an English list: `a, b and c`."""
    texts = [str(word) for word in words]
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} {conjunction} {texts[-1]}"


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known word nearest to a misspelled one, or nothing."""
    words = list(known)
    # The beginning of one word alone is that word, however long the rest is: nproc is no close match of nproc_per_node.
    begun = [each for each in words if word and each.startswith(word)]
    near = begun if len(begun) == 1 else difflib.get_close_matches(word, words, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def quote(value: object, limit: int = 80) -> str:
    """Return a value's repr, cut to a length that a sentence can bear."""
    try:
        text = repr(value)
    except Exception:  # of a foreign type, or nested too deep: the sentence is about something else
        text = f"<{type(value).__name__}>"
    return cut(text, limit)


def cut(text: str, limit: int = 80) -> str:
    """Return a text, cut to a length that a sentence can bear."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def describe_kind(value: object) -> str:
    """Return what a value is, with an article: `an int`."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def describe_error(error: BaseException) -> str:
    """Return what an exception says, as a part of a sentence: its type and its first line, without a full stop."""
    try:
        first, _, rest = str(error).strip().partition("\n")
    except Exception:  # of the exception's own code
        return f"{type(error).__name__} (its message cannot be read)"
    if rest and first.endswith(":") and ". " in first:  # `… . See:`: what there is to see comes in the next line
        first = first.rpartition(". ")[0]
    return f"{type(error).__name__}: {first.rstrip('. ')}" if first else type(error).__name__


def format_size(size_bytes: float) -> str:
    """Return a size as people say it: `640 B`, `1.5 GiB`."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size_bytes >= 1024 and len(units) > 1:
        size_bytes /= 1024
        del units[0]
    return f"{size_bytes:.0f} {units[0]}" if size_bytes >= 100 else f"{size_bytes:.3g} {units[0]}"


def printable(text: str) -> str:
    r"""Return a text for people, which every page and terminal can take: a byte of a path that is no UTF-8 becomes `\udce9`."""
    return text.encode(errors="backslashreplace").decode()


def reason_of(error: Exception) -> str:
    """Return the system's word for what went wrong."""
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def is_for_want_of_room(error: OSError) -> bool:
    """Return whether a file could not be written because a disk, a quota or a limit is full."""
    return error.errno in _NO_ROOM


def excerpt_of_syntax_error(error: SyntaxError) -> tuple[str, ...]:
    """Return the line that is not Python, and a mark below the place; nothing where the error does not have it."""
    if not error.text:
        return ()
    text = error.text.rstrip("\n")
    indent = len(text) - len(text.lstrip())
    return f"    {text.lstrip()}", f"    {' ' * max((error.offset or 1) - 1 - indent, 0)}^"
