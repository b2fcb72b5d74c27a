"""The line of a magic: text → options with their values, and what may be typed next.

A word ends at a blank, unless that is inside quotes or brackets: those run to their partner. Only the first `=` splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ice_notebook.errors import IceNotebookError, OptionError
from ice_notebook.grammars import RefusalError
from ice_notebook.options import Option, Surface, Table

CLOSING = {"(": ")", "[": "]", "{": "}"}
QUOTES = "'\""


# ---- words -------------------------------------------------------------------------------------------------------------------------


def split_words(line: str) -> list[str]:
    """Return the words of a line as they were typed, with their quotes and brackets.

    Raises:
        OptionError: a quote or a bracket has no partner.
    """
    words: list[str] = []
    at = 0
    while at < len(line):
        if line[at].isspace():
            at += 1
            continue
        end = _end_of_word(line, at)
        words.append(line[at:end])
        at = end
    return words


def _end_of_word(line: str, at: int) -> int:
    while at < len(line) and not line[at].isspace():
        at = _end_of_piece(line, at)
    return at


def _end_of_piece(text: str, start: int) -> int:
    """Return where the character at `start` ends: one further, or behind its partner when it is a quote or an opening bracket."""
    opening = text[start]
    if opening in QUOTES:
        return _end_of_quote(text, start)
    if opening not in CLOSING:
        return start + 1
    at = start + 1
    while at < len(text):
        if text[at] == CLOSING[opening]:
            return at + 1
        if text[at] in CLOSING.values():
            break  # another bracket's partner: (]
        at = _end_of_piece(text, at)
    raise OptionError.unbalanced(text[start:])


def _end_of_quote(text: str, start: int) -> int:
    at = start + 1
    while at < len(text):
        if text[at] == text[start]:
            return at + 1
        at += 2 if text[at] == "\\" else 1
    raise OptionError.unbalanced(text[start:])


# ---- values ------------------------------------------------------------------------------------------------------------------------


def evaluate(option: str, text: str, namespace: Mapping[str, Any]) -> Any:
    """Return the value of a Python expression over the notebook's variables.

    Raises:
        OptionError: it is not an expression, or it raised; that exception is the cause.
    """
    try:
        # `eval` would put `__builtins__` into a namespace that has none, and this one is the user's.
        return eval(text.strip(), {**namespace})  # noqa: S307 - the user's own code, in the user's own notebook
    except Exception as error:
        raise OptionError.expression(option, text, error) from error


def _evaluate_braces(option: str, text: str, namespace: Mapping[str, Any]) -> Any:
    """Return the value of `{expression}`; braces that hold no expression are a dict themselves: `{"A": 1}`."""
    try:
        return evaluate(option, text[1:-1], namespace)
    except OptionError as error:
        if not isinstance(error.__cause__, SyntaxError):
            raise
    return evaluate(option, text, namespace)


def read_value(option: Option, typed: str, namespace: Mapping[str, Any]) -> Any:
    """Return the value of an option from the text that was typed for it.

    The option's own grammar comes first, then, unless the option is free text, the notebook's variables. `{expression}` is evaluated,
    also inside a longer text; what stands in quotes is text.
    """
    if option.grammar.is_expression:
        return option.convert(evaluate(option.name, typed, namespace))
    if typed[:1] in CLOSING and _end_of_piece(typed, 0) == len(typed):
        if typed[0] == "{":
            return option.convert(_evaluate_braces(option.name, typed, namespace))
        if not option.grammar.is_free_text:
            return option.convert(evaluate(option.name, typed, namespace))
    text = "".join(_pieces(option, typed, namespace))
    try:
        return option.parse(text)
    except IceNotebookError as error:
        is_name = typed.isidentifier() and not option.grammar.is_free_text
        if not is_name or isinstance(error.__cause__, RefusalError):
            raise
        if typed not in namespace:
            names = [name for name in namespace if not name.startswith("_")]
            raise error.with_no_variable(typed, [*option.grammar.words, *names]) from None
    return option.convert(namespace[typed])


def _pieces(option: Option, typed: str, namespace: Mapping[str, Any]) -> Iterator[str]:
    at = 0
    while at < len(typed):
        end = _end_of_piece(typed, at)
        piece = typed[at:end]
        if piece[0] in QUOTES:
            yield re.sub(r"\\([\\'\"])", r"\1", piece[1:-1])
        elif piece[0] == "{":
            yield str(_evaluate_braces(option.name, piece, namespace))
        else:
            yield piece
        at = end


# ---- the line ----------------------------------------------------------------------------------------------------------------------


def read_line(line: str, table: Table, namespace: Mapping[str, Any], surface: Surface) -> dict[str, Any]:
    """Return the options that a magic's line gives, by name, with their values.

    Raises:
        OptionError: the line cannot be read, or names an option that is not here.
        DeviceError: the devices cannot be read.
    """
    values: dict[str, Any] = {}
    for option, typed in _read_options(split_words(line), table, surface):
        value: Any = True if typed is None else read_value(option, typed, namespace)
        if option.name not in values:
            values[option.name] = value
        elif option.is_repeatable and not values[option.name].keys() & value.keys():
            values[option.name] = {**values[option.name], **value}
        else:
            raise OptionError.twice(option.name)
    return values


def wants_help(line: str) -> bool:
    """Return whether the line asks what it may say."""
    return line.strip() in {"-h", "--help", "?", "help"}


def _read_options(words: list[str], table: Table, surface: Surface) -> Iterator[tuple[Option, str | None]]:
    """Give each option with its text, or None for a flag that stands alone."""
    at = 0
    while at < len(words):
        option, typed = _read_word(words[at], table, surface)
        at += 1
        if typed is None and not option.grammar.is_flag:
            if not words[at - 1].startswith("-") or at == len(words) or words[at].startswith("--"):
                raise OptionError.missing_value(option.name, option.grammar.allowed)
            typed = words[at]
            at += 1
        yield option, typed


def _read_word(word: str, table: Table, surface: Surface) -> tuple[Option, str | None]:
    """Return the option that a word names, and the value in the same word if there is one."""
    if named := re.fullmatch(r"(?:--)?([A-Za-z_][\w-]*)=(.*)", word, re.DOTALL):
        return table.find(named[1], surface), named[2]
    if long := re.fullmatch(r"--([A-Za-z_][\w-]*)", word):
        return table.find(long[1], surface), None
    if short := re.fullmatch(r"-([A-Za-z])(?:=?(.+))?", word, re.DOTALL):
        return table.find_short(short[1], surface), short[2]
    if table.knows(word):
        return table.find(word, surface), None
    if surface is not Surface.CELL and "script" in table.later:
        raise OptionError.later(word, table.later["script"])
    raise OptionError.not_an_option(word, _example(word, table))


def _example(word: str, table: Table) -> str:
    """Return what was probably meant by a word without a name: a value of the first option."""
    first = next(iter(table))
    try:
        first.parse(word)
    except IceNotebookError:
        word = first.example
    return f"{first.name}={word}"


# ---- completion --------------------------------------------------------------------------------------------------------------------


def complete_line(typed: str, table: Table, namespace: Mapping[str, Any], surface: Surface) -> tuple[str, list[str]]:
    """Return the end of what was typed that a completion replaces, and what may stand there.

    `typed` is the line up to the cursor, without the magic's name. Never raises: a line that cannot be read has no completions.
    """
    try:
        words = split_words(typed)
    except OptionError:
        return "", []
    word = words.pop() if words and not typed[-1].isspace() else ""
    try:
        option, value = _value_being_typed(words, word, table, surface)
    except OptionError:
        return "", []
    if option is None:
        return word, _complete_name(word, words, table, surface)
    fragment = value.rpartition(",")[2]
    candidates = option.grammar.complete(value)
    if value.isidentifier() and not option.grammar.is_free_text:
        candidates += [name for name in namespace if name.startswith(value) and name not in candidates]
    return fragment, candidates


def _value_being_typed(words: list[str], word: str, table: Table, surface: Surface) -> tuple[Option | None, str]:
    if "=" in word:
        option, value = _read_word(word, table, surface)
        return option, value or ""
    if words and re.fullmatch(r"--?[A-Za-z_][\w-]*", words[-1]):
        option, value_inside = _read_word(words[-1], table, surface)
        if value_inside is None and not option.grammar.is_flag:
            return option, word
    return None, ""


def _complete_name(word: str, words: list[str], table: Table, surface: Surface) -> list[str]:
    given = {name.strip("-").partition("=")[0].replace("-", "_") for name in words}
    options = [option for option in table.on(surface) if option.is_repeatable or option.name not in given]
    if word.startswith("-"):
        names = [f"--{option.name.replace('_', '-')}" for option in options]
    else:
        names = [option.name if option.grammar.is_flag else f"{option.name}=" for option in options]
        word = word.replace("-", "_")
    return [name for name in names if name.startswith(word)]
