"""Descriptions of values: bounded, deterministic, cheap."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, OrderedDict, defaultdict, deque
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from ice_notebook.values.descriptions import HTML_BYTES, TEXT_CHARACTERS, describe, describe_text, type_name, without_addresses


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Losses:
    step: int
    values: list
    hidden: int = dataclasses.field(default=0, repr=False)


class Weak:
    def __repr__(self):
        raise ValueError("no")


class Table:
    def __init__(self, html):
        self.html = html

    def _repr_html_(self):
        return self.html


class CountedList(list):
    """Counts how many of its items are read."""

    def __init__(self, *args):
        super().__init__(*args)
        self.read = 0

    def __iter__(self):
        for item in super().__iter__():
            self.read += 1
            yield item


@pytest.mark.parametrize(
    "value",
    [
        0.25,
        "it's",
        b"\x00\xff",
        bytearray(b"ab"),
        None,
        [],
        [1, "a", None],
        (),
        (1,),
        (1, 2),
        {},
        {"b": 1, "a": [2, (3,)]},
        set(),
        {3, 1, 2},
        frozenset({1}),
        deque([1, 2]),
        deque([1], maxlen=4),
        deque(),
        defaultdict(int, {"a": 1}),
        Counter("aab"),
        Counter(),
        OrderedDict(),
        SimpleNamespace(a=1, b="c"),
        Point(1, [2]),
        Losses(3, [0.5]),
        int,
        range(3),
        1 + 2j,
    ],
    ids=repr,
)
def test_a_small_value_reads_as_its_repr(value):
    assert describe_text(value) == repr(value)


def test_a_dictionary_keeps_its_order():
    assert describe_text({"z": 1, "a": 2}) == "{'z': 1, 'a': 2}"
    assert describe_text(OrderedDict(z=1, a=2)) == "OrderedDict({'z': 1, 'a': 2})"


def test_a_set_of_strings_reads_the_same_in_every_process():
    words = [f"word{i}" for i in range(9)]
    assert describe_text(set(words)) == "{" + ", ".join(map(repr, words)) + "}"


def test_a_set_that_cannot_be_ordered_is_still_shown():
    assert sorted(describe_text({1, "a"}).strip("{}").split(", ")) == ["'a'", "1"]


def test_the_text_of_a_huge_list_is_bounded_and_its_tail_is_not_read():
    values = CountedList(range(1_000_000))
    text = describe_text(values)
    assert len(text) == TEXT_CHARACTERS
    assert text.startswith("[0, 1, 2,")
    assert text.endswith("…")
    assert values.read < TEXT_CHARACTERS


def test_a_nest_of_long_lists_is_bounded():
    inner = CountedList(range(1000))
    assert len(describe_text([[inner] * 1000] * 1000)) == TEXT_CHARACTERS
    assert inner.read < TEXT_CHARACTERS


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000_000, b"x" * 10_000_000, bytearray(10_000_000), [("y" * 5000)]],
    ids=["str", "bytes", "bytearray", "nested"],
)
def test_a_long_string_is_cut(value):
    text = describe_text(value)
    assert len(text) <= TEXT_CHARACTERS
    assert text.endswith("…")


def test_a_dataclass_with_a_million_values_is_not_read_to_its_end():
    values = CountedList(range(1_000_000))
    assert describe_text(Losses(1, values)).startswith("Losses(step=1, values=[0, 1,")
    assert values.read < TEXT_CHARACTERS


def test_a_dataclass_with_its_own_repr_keeps_it():
    @dataclasses.dataclass(repr=False)
    class Own:
        x: int = 1

        def __repr__(self):
            return "mine"

    assert describe_text([Own()]) == "[mine]"


def test_a_text_of_exactly_the_limit_is_whole():
    assert describe_text("a" * 8, limit=10) == "'aaaaaaaa'"
    assert describe_text("a" * 9, limit=10) == "'aaaaaaaa…"


def test_a_list_in_itself_ends():
    values = [1]
    values.append(values)
    assert describe_text(values) == "[1, ...]"


def test_the_same_object_twice_is_not_a_cycle():
    inner = [1]
    assert describe_text([inner, inner]) == "[[1], [1]]"


def test_a_very_deep_nest_ends():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert "..." in describe_text(deep)


def test_a_repr_that_raises_is_named_where_it_stands():
    assert describe_text(Weak()) == "<repr failed: ValueError>"
    assert describe_text({"a": [1, Weak()]}) == "{'a': [1, <repr failed: ValueError>]}"


def test_an_interrupt_during_a_repr_is_not_swallowed():
    class Slow:
        def __repr__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        describe(Slow())


def test_memory_addresses_are_replaced():
    assert describe_text([object()]) == "[<object object at 0x…>]"
    assert describe_text({"f": len, "g": object.__init__}).count("0x7") == 0
    assert without_addresses("data_ptr=0x7f0011223344, at 0x10") == "data_ptr=0x…, at 0x…"


def test_short_hexadecimal_numbers_stay():
    assert describe_text("mask 0xff") == "'mask 0xff'"


def test_a_lone_surrogate_can_be_written_as_json():
    class Odd:
        def __repr__(self):
            return "\udcff"

    assert json.dumps(describe_text(Odd()), ensure_ascii=False).encode()


def test_type_names_are_as_the_definition_spells_them():
    class Local:
        class Inner:
            pass

    assert type_name({}) == "dict"
    assert type_name(None) == "NoneType"
    assert type_name(Local()) == "Local"
    assert type_name(Local.Inner()) == "Local.Inner"
    assert describe(Point(1, 2))[0] == "Point"


def test_html_is_taken_when_it_is_small_and_a_string():
    assert describe(Table("<b>1</b>"))[2] == "<b>1</b>"
    assert describe(Table("<b>at 0x7f00</b>"))[2] == "<b>at 0x…</b>"


@pytest.mark.parametrize(
    "html", [None, ("<b>", {}), "x" * HTML_BYTES, "é" * (HTML_BYTES // 2)], ids=["none", "tuple", "long", "long in bytes"]
)
def test_other_html_is_left_out(html):
    assert describe(Table(html))[2] == ""


def test_html_that_raises_is_left_out():
    class Broken:
        def _repr_html_(self):
            raise RuntimeError("no")

    assert describe(Broken())[2] == ""


def test_a_class_has_no_html_of_its_own():
    assert describe(Table)[2] == ""


def test_an_attribute_for_every_name_is_no_html_method():
    class Anything:
        def __getattr__(self, name):
            return lambda: "<b>made up</b>"

    assert describe(Anything())[2] == ""


def test_arrays_read_as_their_own_summary():
    numpy = pytest.importorskip("numpy")
    assert describe(numpy.arange(1_000_000))[1] == repr(numpy.arange(1_000_000))


class Leaves:
    def __repr__(self):
        raise SystemExit(3)

    def _repr_html_(self):
        raise SystemExit(4)


class LyingList(list):
    def __len__(self):
        raise SystemExit(5)


def test_a_value_that_leaves_the_program_when_it_is_looked_at_is_named_as_one_that_raises():
    assert describe(Leaves()) == ("Leaves", "<repr failed: SystemExit>", "")
    assert describe([1, Leaves()])[1] == "[1, <repr failed: SystemExit>]"
    assert describe_text(LyingList([1])) == "<repr failed: SystemExit>"


def test_an_interrupt_while_a_value_is_looked_at_is_one():
    class Slow:
        def __repr__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        describe_text([Slow()])
