"""The line of a magic: text → options with their values, and what may be typed next.

A word ends at a blank, unless that is inside quotes or brackets: those run to their partner. Only the first `=` splits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

from ice_notebook.errors import IceNotebookError, OptionError
from ice_notebook.options.grammars import RefusalError
from ice_notebook.options.table import Option, Surface, Table

CLOSING = {"(": ")", "[": "]", "{": "}"}
QUOTES = "'\""
HELP = ("-h", "--help")
_FROM_ENVIRONMENT = "PET_"  # torchrun's prefix


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
    if text[start] in QUOTES:
        return _end_of_quote(text, start)
    opened: list[int] = []  # where the brackets stand that are open; however deep they are nested, a loop goes through them
    at = start
    while at < len(text):
        character = text[at]
        if character in QUOTES:
            at = _end_of_quote(text, at)
            continue
        if character in CLOSING:
            opened.append(at)
        elif opened and character in CLOSING.values():
            if character != CLOSING[text[opened[-1]]]:
                break  # another bracket's partner: (]
            opened.pop()
        at += 1
        if not opened:
            return at
    raise OptionError.unbalanced(text[opened[-1] :])


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


def evaluate_braces(option: str, text: str, namespace: Mapping[str, Any]) -> Any:
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
            return option.convert(evaluate_braces(option.name, typed, namespace))
        if not option.grammar.is_free_text:
            return option.convert(evaluate(option.name, typed, namespace))
    text = read_text(option.name, typed, namespace)
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


def read_text(name: str, typed: str, namespace: Mapping[str, Any]) -> str:
    """Return a word as the text that it stands for: without its quotes, with values for `{expression}`. `name` is for errors."""
    return "".join(_pieces(name, typed, namespace))


def _pieces(name: str, typed: str, namespace: Mapping[str, Any]) -> Iterator[str]:
    at = 0
    while at < len(typed):
        end = _end_of_piece(typed, at)
        piece = typed[at:end]
        if piece[0] in QUOTES:
            yield re.sub(r"\\([\\'\"])", r"\1", piece[1:-1])
        elif piece[0] == "{":
            yield str(evaluate_braces(name, piece, namespace))
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
    words = split_words(line)
    values, end = _read_values(words, table, surface, lambda option, typed: read_value(option, typed, namespace))
    if end < len(words):
        raise OptionError.not_an_option(words[end], _example(words[end], table))
    return values


def read_launch_line(line: str, table: Table, namespace: Mapping[str, Any], surface: Surface) -> tuple[dict[str, Any], list[str]]:
    """Return the options of a magic's line that names a script, and the words that follow them: what is launched, and its arguments.

    Raises as `read_line` does.
    """
    words = split_words(line)
    values, end = _read_values(words, table, surface, lambda option, typed: read_value(option, typed, namespace))
    return values, [read_text("argument", word, namespace) for word in words[end:]]


def read_command(words: Sequence[str], table: Table) -> tuple[dict[str, Any], list[str]]:
    """Return the options of a command line, which a shell has split, and the words that follow them. Raises as `read_line` does."""
    values, end = _read_values(words, table, Surface.CLI, Option.parse)
    return values, list(words[end:])


def _read_values(
    words: Sequence[str], table: Table, surface: Surface, read: Callable[[Option, str], Any]
) -> tuple[dict[str, Any], int]:
    """Return the options that words begin with, and the number of the first word behind them."""
    values: dict[str, Any] = {}
    end = 0
    for option, typed, at in _read_options(words, table, surface):
        end = at
        if option is None:
            break
        value: Any = True if typed is None else read(option, typed)
        if option.name not in values:
            values[option.name] = value
        elif option.is_repeatable and not values[option.name].keys() & value.keys():
            values[option.name] = {**values[option.name], **value}
        else:
            raise OptionError.twice(option.name)
    return values, end


def wants_help(line: str) -> bool:
    """Return whether the line of a magic asks what it may say, and nothing else."""
    return line.strip() in {*HELP, "?", "help"}


def asks_for_help(words: Sequence[str], table: Table, surface: Surface) -> bool:
    """Return whether words ask for help among the options, before what is launched. What cannot be read is no reason not to help."""
    at = 0
    while at < len(words) and words[at] != "--":
        if words[at] in HELP:
            return True
        try:
            option, typed = _read_word(words[at], table, surface)
        except OptionError:
            option = typed = None
            if not words[at].startswith("-"):
                return False
        else:
            if option is None:
                return False
        # A value may be anything, but for another option.
        takes_next = option is not None and typed is None and not option.grammar.is_flag
        at += 2 if takes_next and "--help" not in words[at + 1 : at + 2] else 1
    return False


def read_environment(environment: Mapping[str, str], table: Table, given: Container[str]) -> dict[str, tuple[str, Any]]:
    """Return the options that the environment gives as it gives them to torchrun, by `PET_MAX_RESTARTS`: its variable, and the value.

    Those that are `given` otherwise do not count.

    Raises:
        OptionError: a variable cannot be read, or names an option of torchrun's that is not here.
    """
    found: dict[str, tuple[str, Any]] = {}
    for variable, text in sorted(environment.items()):
        name = variable.removeprefix(_FROM_ENVIRONMENT).lower()
        if not variable.startswith(_FROM_ENVIRONMENT) or not variable.isupper() or not text or not table.is_torchruns(name):
            continue
        try:
            option = table.find(name, Surface.CLI)
            if option.name not in given:
                found[option.name] = variable, option.parse(text)
        except IceNotebookError as error:
            raise error.from_environment([variable]) from None
    return found


def _read_options(words: Sequence[str], table: Table, surface: Surface) -> Iterator[tuple[Option | None, str | None, int]]:
    """Give each option with its text, None for a flag that stands alone, and where the next begins; then, without one, where they end."""
    at = 0
    while at < len(words):
        if surface is not Surface.CELL and words[at] == "--":
            yield None, None, at + 1
            return
        option, typed = _read_word(words[at], table, surface)
        if option is None:
            yield None, None, at
            return
        at += 1
        if typed is None and not option.grammar.is_flag:
            if not words[at - 1].startswith("-") or at == len(words) or words[at].startswith("--"):
                raise OptionError.missing_value(option.name, option.grammar.allowed)
            typed = words[at]
            at += 1
        yield option, typed, at


def _read_word(word: str, table: Table, surface: Surface) -> tuple[Option | None, str | None]:
    """Return the option that a word names, None if it names none, and the value in the same word if there is one."""
    if long := re.fullmatch(r"--([A-Za-z_][\w-]*)(?:=(.*))?", word, re.DOTALL):
        return table.find_begun(long[1], surface), long[2]
    if short := re.fullmatch(r"-([A-Za-z])(?:=?(.+))?", word, re.DOTALL):
        return table.find_short(short[1], surface), short[2]
    if surface is Surface.CLI:
        # A shell's command line has its options behind dashes, and nothing else there.
        if word.startswith("-") and word != "-":
            raise OptionError.unknown(word, [])
        return None, None
    if named := re.fullmatch(r"([A-Za-z_][\w-]*)=(.*)", word, re.DOTALL):
        return table.find(named[1], surface), named[2]
    # On a magic's line that may name a program, an option that needs a value is none without it.
    if table.knows(word) and (surface is Surface.CELL or table.is_flag(word)):
        return table.find(word, surface), None
    return None, None


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
        if option is not None and value_inside is None and not option.grammar.is_flag:
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
