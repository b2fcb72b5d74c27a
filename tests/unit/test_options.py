"""The grammars of values, and the table of options that is derived from a dataclass."""

# ruff: noqa: RUF009 - `option` makes a dataclass field, which is what ruff wants there
import enum
import pathlib
from dataclasses import dataclass
from typing import Any

import pytest

from ice_notebook.errors import OptionError
from ice_notebook.options.grammars import (
    Backend,
    Choice,
    Expression,
    Flag,
    Integer,
    KeyValues,
    Name,
    Names,
    Nodes,
    RefusalError,
    Seconds,
    StdStreams,
    Text,
)
from ice_notebook.options.table import Option, Surface, Table, option, streams_of_rank

UNREADABLE = (ValueError, TypeError)


class TorchStd(enum.IntFlag):
    NONE = 0
    OUT = 1
    ERR = 2
    ALL = 3


@pytest.mark.parametrize(
    ("grammar", "value", "result"),
    [
        (Integer(0), "3", 3),
        (Integer(0), 3, 3),
        (Integer(0), "+3", 3),
        (Integer(1, words=("auto",)), "auto", "auto"),
        (Integer(0, 65535), "65535", 65535),
        (Seconds(or_zero=True), "0", 0.0),
        (Seconds(or_zero=False), "1e-1", 0.1),
        (Seconds(or_zero=False), 5, 5.0),
        (Flag(), "true", True),
        (Flag(), "No", False),
        (Flag(), 1, True),
        (Flag(), False, False),
        (Text("text"), "two words", "two words"),
        (Text("text"), pathlib.PurePosixPath("/a/b"), "/a/b"),
        (Text("text"), 7, "7"),
        (Choice("a", "b"), "b", "b"),
        (Choice("auto", "no", same={"false": "no"}), False, "no"),
        (Backend(), "nccl", "nccl"),
        (Backend(), "cpu:gloo,cuda:nccl", "cpu:gloo,cuda:nccl"),
        (Nodes(), "1:1", (1, 1)),
        (Nodes(), "2", (2, 2)),
        (Nodes(), 1, (1, 1)),
        (Nodes(), "1:4", (1, 4)),
        (Nodes(), (1, 4), (1, 4)),
        (StdStreams(), "0", 0),
        (StdStreams(), "3", 3),
        (StdStreams(), 2, 2),
        (StdStreams(), TorchStd.ALL, 3),
        (StdStreams(), "0:1,1:2", {0: 1, 1: 2}),
        (StdStreams(), "10:3,128:1", {10: 3, 128: 1}),
        (StdStreams(), {0: TorchStd.OUT}, {0: 1}),
        (StdStreams(), {}, 0),
        (KeyValues(), "a=1,b=2", {"a": "1", "b": "2"}),
        (KeyValues(), "", {}),
        (KeyValues(), "a=b=c", {"a": "b=c"}),
        (KeyValues(), {"a": 1}, {"a": "1"}),
        (KeyValues(commas_in_values=True), "A=1,2,B=3", {"A": "1,2", "B": "3"}),
        (KeyValues(commas_in_values=True), "A=", {"A": ""}),
        (Names(), "a,b.c", ("a", "b.c")),
        (Names(), ["a", pathlib], ("a", "pathlib")),
        (Names(), pathlib, ("pathlib",)),
        (Name(), "run", "run"),
        (Expression("a number", int), 3, 3),
    ],
)
def test_a_value_is_converted_and_stays_what_it_is_when_converted_again(grammar, value, result):
    converted = grammar.convert(value)
    assert converted == result
    assert type(converted) is type(result)
    assert grammar.convert(converted) == result


@pytest.mark.parametrize(
    ("grammar", "value"),
    [
        (Integer(0), "-1"),
        (Integer(0), "1.5"),
        (Integer(0), 1.5),
        (Integer(0), True),
        (Integer(0), "٣"),
        (Integer(0), "9" * 5000),
        (Integer(0, 9), 10),
        (Integer(1), "auto"),
        (Seconds(or_zero=False), "0"),
        (Seconds(or_zero=True), "-1"),
        (Seconds(or_zero=True), "nan"),
        (Seconds(or_zero=True), float("inf")),
        (Seconds(or_zero=True), "1e999"),
        (Seconds(or_zero=True), "1-2"),
        (Seconds(or_zero=True), True),
        (Seconds(or_zero=True), [1]),
        (Flag(), "maybe"),
        (Flag(), 2),
        (Text("text"), ""),
        (Text("text"), "a\0b"),
        (Text("text"), True),
        (Text("text"), 1.5),
        (Choice("a", "b"), "c"),
        (Choice("a", "b"), 3),
        (Backend(), "cpu:"),
        (Nodes(), "0"),
        (Nodes(), "2:1"),
        (Nodes(), "1:2:3"),
        (Nodes(), 1.0),
        (StdStreams(), "4"),
        (StdStreams(), "0:4"),
        (StdStreams(), "0:1,"),
        (StdStreams(), "0:1,0:2"),
        (StdStreams(), {"a": 1}),
        (StdStreams(), -1),
        (StdStreams(), ""),
        (KeyValues(), "a"),
        (KeyValues(), "=1"),
        (KeyValues(), "a=1,a=2"),
        (KeyValues(), "a=1,b"),
        (KeyValues(), {"a": [1]}),
        (KeyValues(), {1: "a"}),
        (KeyValues(), ["a=1"]),
        (KeyValues(commas_in_values=True), "B,A=1"),
        (KeyValues(), {"a": "x\0"}),
        (Names(), "a,,b"),
        (Names(), "a-b"),
        (Name(), "class"),
        (Name(), "a.b"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(grammar, value):
    with pytest.raises(UNREADABLE):
        grammar.convert(value)


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (Nodes(), "1:4"),
        (Nodes(), "2"),
        (StdStreams(), "0:1,10:3"),
        (StdStreams(), "3"),
        (KeyValues(), "a=1,b=2"),
        (Flag(), "true"),
        (Seconds(or_zero=True), "0.5"),
        (Names(), "a,b.c"),
        (Integer(0), "7"),
    ],
)
def test_a_value_is_written_as_it_was_read(grammar, text):
    assert grammar.format(grammar.parse(text)) == text


def test_a_refused_word_says_why():
    with pytest.raises(RefusalError, match="because"):
        Choice("spawn", refused={"fork": "because"}).parse("fork")


def test_a_rank_that_a_mapping_leaves_out_has_no_streams():
    assert [streams_of_rank({0: 1, 10: 3}, rank) for rank in (0, 1, 10)] == [1, 0, 3]
    assert streams_of_rank(2, 5) == 2


def test_completion_replaces_what_follows_the_last_comma():
    assert Choice("auto", "gloo").complete("g") == ["gloo"]
    assert Flag().complete("") == ["true", "false"]


# ---- the table


@dataclass
class Few:
    speed: int = option(1, "How fast.", grammar=Integer(0), group="A", example="2")
    method: str = option("spawn", "How.", grammar=Choice("spawn", refused={"fork": "it hangs."}), group="A", aliases=("how_to",))
    limit: float | None = option(
        None, "How long.", grammar=Seconds(or_zero=False), group="B", shown="no limit", short="l", note="Ours."
    )
    args: Any = option(
        None, "What.", grammar=Expression("a tuple", tuple), group="B", surfaces=frozenset({Surface.CELL}), shown="none"
    )
    quiet: bool = option(False, "Say nothing.", grammar=Flag(), group="B")
    pairs: dict = option({}, "Pairs.", grammar=KeyValues(), group="B")


TABLE = Table(Few, later={"magic": "it comes later."})


def refusal(call, *args):
    with pytest.raises(OptionError) as caught:
        call(*args)
    return str(caught.value)


def test_an_option_is_found_by_each_of_its_spellings():
    assert TABLE.find("how-to", Surface.PYTHON).name == "method"
    assert TABLE.find("method", Surface.CELL).name == "method"
    assert TABLE.find_short("l", Surface.CELL).name == "limit"
    assert TABLE.knows("how-to")
    assert TABLE.knows("magic")
    assert not TABLE.knows("banana")


def test_an_unknown_option_is_refused_with_a_suggestion_or_the_options_of_this_place():
    assert refusal(TABLE.find, "sped", Surface.PYTHON).endswith("'sped' is not an option. Did you mean 'speed'?")
    assert "limit, method, pairs, quiet and speed" in refusal(TABLE.find, "banana", Surface.PYTHON)


def test_an_option_of_another_place_is_refused_with_the_place():
    assert refusal(TABLE.find, "args", Surface.PYTHON) == "'args' is not an option here: it belongs to the magic of a cell."


def test_an_option_that_comes_later_is_refused_with_the_reason():
    assert refusal(TABLE.find, "magic", Surface.PYTHON) == "'magic' is not available in this version: it comes later."


def test_values_are_converted_by_name_and_one_option_given_twice_is_refused():
    assert TABLE.convert({"speed": "3", "how-to": "spawn"}, Surface.PYTHON) == {"speed": 3, "method": "spawn"}
    assert (
        refusal(TABLE.convert, {"how_to": "spawn", "method": "spawn"}, Surface.PYTHON) == "'method' is given twice; give it once."
    )


def test_a_value_that_cannot_be_read_is_refused_with_what_is_allowed():
    assert (
        refusal(TABLE.find("speed", Surface.PYTHON).parse, "-1") == "speed='-1' is not valid: expected a whole number of 0 or more."
    )
    assert (
        refusal(TABLE.find("speed", Surface.PYTHON).convert, -1) == "speed=-1 is not valid: expected a whole number of 0 or more."
    )


def test_a_long_value_is_cut_in_the_sentence():
    assert len(refusal(TABLE.find("speed", Surface.PYTHON).convert, [0] * 10_000)) < 200


def test_a_refused_word_keeps_its_reason_in_the_sentence():
    assert refusal(TABLE.find("method", Surface.CELL).parse, "fork") == "method='fork' is refused: it hangs."


def test_an_option_without_a_default_takes_none_by_word_and_by_value():
    limit = TABLE.find("limit", Surface.PYTHON)
    assert limit.parse("none") is limit.parse("None") is limit.convert(None) is None
    assert "is not valid" in refusal(TABLE.find("speed", Surface.PYTHON).convert, None)


def test_a_default_dict_is_not_shared():
    Few().pairs["a"] = "1"
    assert Few().pairs == {}


def test_the_help_of_a_place_says_what_each_of_its_options_does():
    text = TABLE.help_text(Surface.PYTHON)
    assert "  limit=SECONDS, -l SECONDS\n      How long. Ours. Default: no limit.\n" in text
    assert "  quiet\n      Say nothing. Default: false.\n" in text
    assert "args" not in text
    assert "args=EXPRESSION" in TABLE.help_text(Surface.CELL)


def test_the_groups_keep_the_order_of_the_fields():
    assert {heading: [each.name for each in options] for heading, options in TABLE.groups(Surface.PYTHON).items()} == {
        "A": ["speed", "method"],
        "B": ["limit", "quiet", "pairs"],
    }
    assert all(isinstance(each, Option) for each in TABLE)
