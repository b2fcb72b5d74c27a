"""Structures as JSON: every text arrives as it was, and what is no whole structure is refused in one way."""

from __future__ import annotations

import enum
import json
import os
import sys
from typing import Any

import msgspec
import pytest
from histories import History, plan

from ice_notebook.errors import LaunchError, printable
from ice_notebook.runs.report import format_html, format_text
from ice_notebook.ui.widgets.kernel import sendable
from ice_notebook.wire import exact_json
from ice_notebook.wire import protocol as p
from ice_notebook.wire.control import NotUnderstood, OfRank
from ice_notebook.wire.messages import Handlers, pack_message

BYTE = os.fsdecode(b"caf\xe9 \xff")  # what Python makes of a name that is no UTF-8
TEXTS = [
    BYTE,
    os.fsdecode(bytes(range(1, 256))),
    "\ud800",
    "\udfff\ud800",  # in an order that is no pair
    "\\udce9",  # the escape itself, as six characters
    "\\" + BYTE,
    f'"{BYTE}"\n\x00\x1f\x7f\u2028',
    "é 训练 🏖 \U0010ffff",
    "🏖" + BYTE,
]


class Kind(enum.Enum):
    ONE = "é"


class Inner(msgspec.Struct, frozen=True, tag="inner"):
    text: str


class Everything(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    text: str
    number: int = 3
    part: float | None = None
    flags: p.Std = p.Std.NONE
    kind: Kind = Kind.ONE
    texts: tuple[str, ...] = ()
    by_name: dict[str, str] = {}
    by_number: dict[int, str] = {}
    inner: Inner | None = None
    raw: bytes = b""


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_every_text_survives_wherever_it_stands(text: str) -> None:
    made = Everything(
        text=text,
        number=2**53,
        part=1.5,
        flags=p.Std.ALL,
        texts=(text, "", text),
        by_name={text: text},
        by_number={-1: text},
        inner=Inner(text),
        raw=b"\xff",
    )
    encoded = exact_json.encode(made)
    assert b"\n" not in encoded
    assert exact_json.decode(encoded, Everything) == made
    assert exact_json.decode(exact_json.encode(made, indent=1), Everything) == made
    # It is JSON to everybody, and to Python the same texts.
    assert json.loads(encoded)["by_name"] == {text: text}


def test_what_needs_no_escape_is_written_as_ever() -> None:
    event = p.RunEnded(at=1.5, outcome=p.Outcome.FAILED, reason="é \\udce9", swept=3)
    assert exact_json.encode(event) == msgspec.json.encode(event)
    assert exact_json.decode(msgspec.json.encode(event), p.RunEnded) == event


def test_defaults_and_tags_are_the_same_by_either_way() -> None:
    plain, odd = (p.encode(p.RunEnded(at=1.5, outcome=p.Outcome.FAILED, reason=reason)) for reason in ("x", BYTE))
    assert odd.replace(json.dumps(BYTE).encode(), b'"x"') == plain


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b'{"text":"\xff"}',
        b'{"text":"\\udce9"',
        b'{"text":"\\udce',
        b'{"text":"\\ud',
        b'{"text":"\\udce9","number":"3"}',
        b'{"text":"\\udce9","kind":"two"}',
        b'["\\udce9"]',
        b'{"number":"\\udce9"}',
        b'{"text":"\\udce9","inner":' + b"[" * 100_000,
        b'{"text":"x","inner":' + b"[" * 100_000,
    ],
    ids=lambda data: ascii(data[:40]),
)
def test_what_is_no_whole_structure_is_refused_in_one_way(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        exact_json.decode(data, Everything)


def test_anything_nested_too_deeply_is_refused_as_well() -> None:
    for start in (b"[" * 100_000, b'["\\udce9",' + b"[" * 100_000):
        with pytest.raises(msgspec.DecodeError):
            exact_json.decode(start, list)


def test_a_torn_line_with_an_escape_is_never_misread() -> None:
    line = p.encode(p.RunEnded(at=1.5, outcome=p.Outcome.FAILED, reason=BYTE, swept=3))
    assert p.decode_event(line).reason == BYTE
    for length in range(len(line)):
        with pytest.raises(msgspec.DecodeError):
            p.decode_event(line[:length])


def test_a_plan_whose_every_text_is_of_the_operating_system_arrives_as_it_was() -> None:
    texts = {field.name: f"{field.name} {BYTE}" for field in msgspec.structs.fields(p.Plan) if field.type is str}
    made = plan(
        **texts,
        environment={BYTE: BYTE},
        sys_path=(BYTE,),
        script=p.Script(kind=p.ScriptKind.FILE, target=BYTE, args=(BYTE,), path=(BYTE,)),
    )
    assert p.decode(p.encode(made), p.Plan) == made


def test_a_message_takes_every_text() -> None:
    handlers = Handlers({NotUnderstood: lambda message: message.what, OfRank: lambda message: message.body})
    assert handlers.take_packed(pack_message(NotUnderstood(what=BYTE))) == BYTE
    assert handlers.take_packed(pack_message(OfRank(attempt=0, rank=0, body=b"\xff"))) == b"\xff"


# ---- for people --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_what_is_printable_can_be_encoded_and_is_left_alone_where_it_could_be(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert printable(shown) == shown
    try:
        text.encode()
    except UnicodeEncodeError:
        assert "\\ud" in shown
    else:
        assert shown == text


def test_errors_and_reports_can_be_shown_whatever_they_quote() -> None:
    str(LaunchError(f"The folder {BYTE} cannot be made.")).encode()
    history = History().begin().returns(0, BYTE, type_name=BYTE).returns(1).end(p.Outcome.FAILED, reason=BYTE)
    made = plan(name=BYTE)
    for text in (format_text(made, history.state), format_html(made, history.state, {0: [BYTE]})):
        text.encode()


def test_what_a_page_is_sent_is_text_that_it_can_take() -> None:
    content: dict[str, Any] = {"folder": BYTE, "ranks": [{"note": BYTE, "pid": 7, "at": None}], "bars": ((BYTE, 1, 2),)}
    sent = sendable(content)
    json.dumps(sent, ensure_ascii=False).encode()
    assert sent["ranks"][0]["pid"] == 7
    assert sent["bars"][0][1:] == [1, 2]


def test_it_does_not_read_what_a_number_is_too_long_for() -> None:
    """Python refuses to read numbers of more than 4,300 digits, and says so by a ValueError."""
    if hasattr(sys, "get_int_max_str_digits"):
        with pytest.raises(msgspec.DecodeError):
            exact_json.decode(b'["\\udce9",' + b"9" * 5_000 + b"]", list)
