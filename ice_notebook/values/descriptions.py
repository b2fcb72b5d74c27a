"""What a value looks like, as bounded and deterministic text: written on the rank, for the report and the panel.

A description never costs more than what it shows: a list of a million numbers is read only as far as its text goes.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sized
from types import SimpleNamespace
from typing import Any

from ice_notebook.errors import printable

TEXT_CHARACTERS = 2000  # what a panel and a report still show as it is
HTML_BYTES = 10_000  # a table of some sixty rows; a larger one belongs into a file
DEPTH = 20  # containers nested deeper than this are shown as ...

_ADDRESS = re.compile(r"(?<=\bat )0x[0-9a-fA-F]+|\b0x[0-9a-fA-F]{8,16}\b")


def without_addresses(text: str) -> str:
    """Return the text with memory addresses as `0x…`, so that two runs of the same thing read the same."""
    return _ADDRESS.sub("0x…", text)


def type_name(value: object) -> str:
    """Return the name of a value's class as its definition spells it: `Tensor`, `Outer.Inner`."""
    return printable(type(value).__qualname__.rpartition("<locals>.")[2])


def describe(value: object) -> tuple[str, str, str]:
    """Return the type name, the text and the HTML of a value.

    The text is its repr, at most 2000 characters, with insertion order kept, sets sorted and addresses replaced. A repr that raises is
    shown as `<repr failed: ValueError>` in its place, also one that raises SystemExit; KeyboardInterrupt gets out. The HTML is what `_repr_html_` gives when that is below 10 kB, else empty.
    """
    return type_name(value), describe_text(value), _describe_html(value)


def describe_text(value: object, *, limit: int = TEXT_CHARACTERS) -> str:
    """Return the repr of a value, cut after `limit` characters with `…` as the last one."""
    writer = _Writer(limit)
    try:
        writer.add(value)
    except _FullError:
        return "".join(writer.parts)[: limit - 1] + "…"
    return "".join(writer.parts)


def _describe_html(value: object) -> str:
    method = getattr(type(value), "_repr_html_", None)
    if method is None or isinstance(value, type):
        return ""
    try:
        html = method(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # the text stands for it: a display method is no reason to lose a result
        return ""
    if not isinstance(html, str) or len(html) >= HTML_BYTES:
        return ""
    html = printable(without_addresses(html))
    return html if len(html.encode()) < HTML_BYTES else ""


class _FullError(Exception):
    """The text has reached its limit; what follows is not looked at."""


class _Writer:
    """Writes the repr of a value piece by piece until the limit is reached."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = limit
        self.parts: list[str] = []
        self.open: set[int] = set()  # containers that are being written: met again, they are a cycle

    def write(self, text: str) -> None:
        self.parts.append(text)
        self.left -= len(text)
        if self.left < 0:
            raise _FullError

    def leaf(self, value: object) -> None:
        self.write(printable(without_addresses(repr(value))))

    def add(self, value: object) -> None:
        try:
            self._add(value)
        except (_FullError, KeyboardInterrupt):
            raise
        except BaseException as error:  # of the value's own code
            self.write(f"<repr failed: {type(error).__name__}>")

    def _add(self, value: object) -> None:
        form = _form_of(value)
        if form is None or (isinstance(value, Sized) and not len(value)):
            self.leaf(value)
        elif id(value) in self.open or len(self.open) >= DEPTH:
            self.write("...")
        else:
            self.open.add(id(value))
            try:
                form(self, value)
            finally:
                self.open.discard(id(value))

    def items(self, start: str, values: Iterable[object], end: str) -> None:
        self.write(start)
        for index, value in enumerate(values):
            if index:
                self.write(", ")
            self.add(value)
        self.write(end)

    def pairs(self, start: str, pairs: Iterable[tuple[object, object]], end: str) -> None:
        self.write(start)
        for index, (key, value) in enumerate(pairs):
            if index:
                self.write(", ")
            self.add(key)
            self.write(": ")
            self.add(value)
        self.write(end)

    def fields(self, name: str, fields: Iterable[tuple[str, object]]) -> None:
        self.write(f"{name}(")
        for index, (field, value) in enumerate(fields):
            self.write(f"{', ' if index else ''}{field}=")
            self.add(value)
        self.write(")")


_Form = Callable[[_Writer, Any], None]


def _form_of(value: object) -> _Form | None:
    """Return how to write a value whose own repr would read all of it, None when its own repr is to be used."""
    kind = type(value)
    own = kind.__repr__
    form = _FORMS.get(own)
    if form is not None:
        return form
    if isinstance(value, tuple) and hasattr(kind, "_fields") and getattr(own, "__module__", "") == "collections":
        return _write_named_tuple
    # A repr that `dataclass` wrote is compiled from a string; one that the class's author wrote is not.
    code = getattr(getattr(own, "__wrapped__", None), "__code__", None)
    if dataclasses.is_dataclass(kind) and code is not None and code.co_filename == "<string>":
        return _write_dataclass
    return None


def _write_string(writer: _Writer, value: Any) -> None:
    # No form is shorter than its characters, so a longer string fills the text in any case.
    writer.leaf(value[: writer.limit])
    if len(value) > writer.limit:
        raise _FullError


def _write_set(writer: _Writer, value: Any) -> None:
    try:
        # The order of a set of strings differs from process to process.
        members = heapq.nsmallest(writer.limit, value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # members that cannot be compared have no order to keep
        members = list(itertools.islice(value, writer.limit))
    plain = type(value) is set
    writer.items("{" if plain else f"{type(value).__name__}({{", members, "}" if plain else "})")


def _write_tuple(writer: _Writer, value: Any) -> None:
    writer.items("(", value, ",)" if len(value) == 1 else ")")


def _write_deque(writer: _Writer, value: Any) -> None:
    end = "])" if value.maxlen is None else f"], maxlen={value.maxlen})"
    writer.items("deque([", value, end)


def _write_default_dict(writer: _Writer, value: Any) -> None:
    writer.write("defaultdict(")
    writer.leaf(value.default_factory)
    writer.pairs(", {", value.items(), "})")


def _write_counter(writer: _Writer, value: Any) -> None:
    try:
        counts = heapq.nlargest(writer.limit, value.items(), key=lambda pair: pair[1])
    except TypeError:
        counts = list(itertools.islice(value.items(), writer.limit))
    writer.pairs("Counter({", counts, "})")


def _write_named_tuple(writer: _Writer, value: Any) -> None:
    writer.fields(type(value).__name__, zip(value._fields, value, strict=False))


def _write_dataclass(writer: _Writer, value: Any) -> None:
    shown = (field.name for field in dataclasses.fields(value) if field.repr)
    writer.fields(type(value).__qualname__, ((name, getattr(value, name, "<not set>")) for name in shown))


# By the repr that a class has, so that a subclass with a repr of its own keeps it.
_FORMS: dict[Any, _Form] = {
    str.__repr__: _write_string,
    bytes.__repr__: _write_string,
    bytearray.__repr__: _write_string,
    list.__repr__: lambda writer, value: writer.items("[", value, "]"),
    tuple.__repr__: _write_tuple,
    dict.__repr__: lambda writer, value: writer.pairs("{", value.items(), "}"),
    set.__repr__: _write_set,
    frozenset.__repr__: _write_set,
    deque.__repr__: _write_deque,
    OrderedDict.__repr__: lambda writer, value: writer.pairs("OrderedDict({", value.items(), "})"),
    defaultdict.__repr__: _write_default_dict,
    Counter.__repr__: _write_counter,
    SimpleNamespace.__repr__: lambda writer, value: writer.fields("namespace", vars(value).items()),
}
