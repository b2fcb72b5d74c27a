"""What the magics need of IPython, in the form that the installed IPython has: IPython 7 completes and silences otherwise."""

from __future__ import annotations

import functools
import tokenize
from collections.abc import Callable
from io import StringIO
from typing import Any, Protocol, TypeVar

from IPython.core import completer, magic

Completions = tuple[str, list[str]]  # the end of what was typed that is replaced, and what may stand there
_Magic = TypeVar("_Magic", bound=Callable[..., Any])


class Complete(Protocol):
    """Return what may follow on the line of the cursor, None when that is not ours to say."""

    def __call__(self, typed: str, /, *, is_first_line: bool) -> Completions | None: ...


# ---- completion --------------------------------------------------------------------------------------------------------------------------


def add_completer(shell: Any, complete: Complete) -> None:
    """Have a shell ask `complete` as well, once."""
    matchers = shell.Completer.custom_matchers
    if not any(map(_is_ours, matchers)):
        make = _matcher if hasattr(completer, "context_matcher") else _matcher_of_ipython_7
        matcher = make(shell, complete)
        matcher.ice_notebook = True
        matchers.append(matcher)


def remove_completer(shell: Any) -> None:
    """Take back what `add_completer` has added."""
    matchers = shell.Completer.custom_matchers
    matchers[:] = [matcher for matcher in matchers if not _is_ours(matcher)]


def _is_ours(matcher: Any) -> bool:
    return bool(getattr(matcher, "ice_notebook", False))


def _matcher(_shell: Any, complete: Complete) -> Any:
    @completer.context_matcher(identifier="ice_notebook", priority=100)
    def match(typing: Any) -> dict[str, Any]:
        typed = typing.full_text.split("\n")[typing.cursor_line][: typing.cursor_position]
        found = complete(typed, is_first_line=typing.cursor_line == 0)
        if found is None:
            return {"completions": []}
        fragment, candidates = found
        return {
            "completions": [
                completer.SimpleCompletion(text, type="option" if text.endswith("=") else "value") for text in candidates
            ],
            "matched_fragment": fragment,
            "suppress": True,
        }

    return match


def _matcher_of_ipython_7(shell: Any, complete: Complete) -> Any:
    """Return a matcher that is told of the last word alone, as IPython divides words; what it finds stands beside what others find."""

    def match(word: str) -> list[str]:
        found = complete(shell.Completer.text_until_cursor, is_first_line=True)  # it does not say which line it is
        if found is None:
            return []
        fragment, candidates = found
        kept = fragment.removesuffix(word)  # before the word, and not replaced
        return [text.removeprefix(kept) for text in candidates if text.startswith(kept)]

    return match


# ---- a semicolon that silences -------------------------------------------------------------------------------------------------------------


def _silenced_here(function: _Magic) -> _Magic:
    """Have a magic's value not displayed when its line or cell ends in a semicolon."""

    @functools.wraps(function)
    def call(self: Any, line: str, *cell: str | None) -> Any:
        value = function(self, line, *cell)
        return None if _ends_in_semicolon(cell[0] if cell and cell[0] is not None else line) else value

    return call  # type: ignore[return-value]


def _ends_in_semicolon(code: str) -> bool:
    """Return whether the last token is a semicolon. A comment may follow."""
    last = ""
    try:
        for token in tokenize.generate_tokens(StringIO(code).readline):
            if token.type not in {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.DEDENT, tokenize.ENDMARKER}:
                last = token.string
    except (tokenize.TokenError, SyntaxError):  # not Python, such as a line of options: what was read so far decides
        pass
    return last == ";"


# IPython 8.5 and newer do it themselves.
output_can_be_silenced: Callable[[_Magic], _Magic] = getattr(magic, "output_can_be_silenced", _silenced_here)
