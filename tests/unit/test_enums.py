"""Enums of a cell: every member arrives as it is, and comes back as the notebook's."""

from __future__ import annotations

import sys

import pytest

ARRIVING = {
    "members": ("class C(enum.Enum):\n    A = 1\n    B = enum.auto()", "(C(2) is C.B, [each.name for each in C])", (True, ["A", "B"])),
    "aliases": ("class C(enum.Enum):\n    A = 1\n    B = 1", "(C.B is C.A, list(C.__members__))", (True, ["A", "B"])),
    "what __init__ has done": (
        "class C(enum.Enum):\n    A = (1, 2)\n    def __init__(self, a, b): self.sum = a + b",
        "(C.A.sum, C.A.value, C((1, 2)) is C.A)",
        (3, (1, 2), True),
    ),
    "what __new__ has done": (
        ("class C(bytes, enum.Enum):\n    A = (1, 'a')\n    def __new__(cls, value, label):\n        made = bytes.__new__(cls, [value])\n"
        "        made._value_, made.label = value, label\n        return made"),
        "(C.A.label, C.A.value, bytes(C.A), C(1) is C.A)",
        ("a", 1, b"\x01", True),
    ),
    "a mixed-in type": ("class C(str, enum.Enum):\n    A = 'a'", "(C.A + 'b', C('a') is C.A)", ("ab", True)),
    "flags with names for several": (
        "class C(enum.IntFlag):\n    R = 1\n    W = 2\n    RW = 3",
        "(C.RW is C.R | C.W, C.RW.name, C.R in C.RW)",
        (True, "RW", True),
    ),
    "its own metaclass": (
        ("class Meta(enum.EnumMeta):\n    def __getitem__(cls, name): return super().__getitem__(name.upper())\n"
        "class C(enum.Enum, metaclass=Meta):\n    A = 1"),
        "C['a'] is C.A",
        True,
    ),
    "members that are called": (
        ("import functools\ndef double(x): return 2 * x\nclass C(enum.Enum):\n    A = functools.partial(double)\n"
        "    def __call__(self, x): return self.value(x)"),
        "C.A(4)",
        8,
    ),
    "what was put on a member": ("class C(enum.Enum):\n    A = 1\nC.A.note = 'x'", "C.A.note", "x"),
    "made by a call": ("C = enum.Enum('C', 'A B')", "C.B.value", 2),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRIVING)
def test_an_enum_arrives_as_it_is(notebook, name):
    cell, expression, expected = ARRIVING[name]
    notebook.cell(f"import enum\n{cell}")
    assert notebook.in_rank(expression) == expected


def test_a_member_comes_back_as_the_notebooks(notebook):
    notebook.cell("import enum\nclass C(str, enum.Enum):\n    A = 'a'\nclass F(enum.Flag):\n    R = 1\n    W = 2\n    RW = 3")
    member, flags = notebook.in_rank("(C.A, F.RW)")
    assert member is notebook.variables["C"].A
    assert flags is notebook.variables["F"].RW


@pytest.mark.skipif(sys.version_info < (3, 11), reason="flags have a boundary from Python 3.11 on")
def test_flags_keep_their_boundary(notebook):
    notebook.cell("import enum\nclass F(enum.Flag, boundary=enum.KEEP):\n    R = 1")
    assert notebook.in_rank("F(9).value") == 9
