"""Classes of a cell: they arrive as they were made, and come back as the notebook's own."""

from __future__ import annotations

import dataclasses

import pytest

# (cell, expression in the rank, its value)
ARRIVING = {
    "slots are slots, and there is no dictionary": (
        "class S:\n    __slots__ = ('a',)\n    def __init__(self, a): self.a = a\nsent = S(1)",
        "(sent.a, hasattr(sent, '__dict__'), S(2).a)",
        (1, False, 2),
    ),
    "one slot, as a text": ("class S:\n    __slots__ = 'a'\nsent = S()\nsent.a = 1", "(sent.a, hasattr(sent, '__dict__'))", (1, False)),
    "one private slot, as a text": (
        "class S:\n    __slots__ = '__a'\n    def __init__(self): self.__a = 1\n    def get(self): return self.__a",
        "(S().get(), S.__slots__)",
        (1, "__a"),
    ),
    "slots with their docs": ("class S:\n    __slots__ = {'a': 'what it is'}", "S.__slots__", {"a": "what it is"}),
    "slots from an iterator that is used up": (
        "class S:\n    __slots__ = iter(['a'])",
        "(S.a is not None, hasattr(S(), '__dict__'))",
        (True, False),
    ),
    "private slots beside a dictionary": (
        ("class S:\n    __slots__ = ('__a', '__dict__', '__weakref__')\n    def __init__(self): self.__a = self.b = 1\n"
        "    def get(self): return self.__a, self.b"),
        "S().get()",
        (1, 1),
    ),
    "slots of a dataclass": (
        "import dataclasses\n@dataclasses.dataclass(slots=True)\nclass D:\n    a: int\n    b: list = dataclasses.field(default_factory=list)",
        "(D(1) == D(1), hasattr(D(1), '__dict__'), D(1).b)",
        (True, False, []),
    ),
    "slots of a generic class": (
        "from typing import Generic, TypeVar\nT = TypeVar('T')\nclass S(Generic[T]):\n    __slots__ = ('a',)",
        "(S[int] is not None, S.__parameters__ == (T,), hasattr(S(), '__dict__'))",
        (True, True, False),
    ),
    "__init_subclass__ with arguments has done its work": (
        "made = []\nclass Base:\n    def __init_subclass__(cls, *, tag): made.append(tag)\nclass A(Base, tag='a'): pass\nclass B(A, tag='b'): pass",
        "(B.__mro__[2] is Base, made, type('C', (Base,), {}, tag='c') is not None, made)",
        (True, ["a", "b", "c"], True, ["a", "b", "c"]),
    ),
    "a library's __init_subclass__ runs": (
        ("import typing\nclass Base:\n    def __init_subclass__(cls, *, tag): super().__init_subclass__()\n"
        "class A(Base, typing.Generic[typing.TypeVar('T')], tag=1): pass"),
        "A[int].__origin__ is A",
        True,
    ),
    "a metaclass with arguments has done its work": (
        ("class Meta(type):\n    made = []\n    def __new__(cls, name, bases, body, *, tag):\n        Meta.made.append(body['x'] + tag)\n"
        "        return super().__new__(cls, name, bases, body)\n    def __init__(cls, name, bases, body, *, tag): cls.tag = tag\n"
        "class A(metaclass=Meta, tag='t'):\n    x = 'x'"),
        "(type(A) is Meta, Meta.made, A.tag, A().x)",
        (True, ["xt"], "t", "x"),
    ),
    "a metaclass over ABCMeta": (
        ("import abc\nclass Meta(abc.ABCMeta):\n    def __new__(cls, *given, tag): return super().__new__(cls, *given)\n"
        "class A(metaclass=Meta, tag=1):\n    @abc.abstractmethod\n    def f(self): ...\nA.register(int)"),
        "(isinstance(1, A), sorted(A.__abstractmethods__))",
        (True, ["f"]),
    ),
    "TypedDict": (
        "from typing import TypedDict\nclass A(TypedDict):\n    a: int\nclass B(A, total=False):\n    b: str",
        "(B(a=1), sorted(B.__required_keys__), sorted(B.__optional_keys__), sorted(B.__annotations__))",
        ({"a": 1}, ["a"], ["b"], ["a", "b"]),
    ),
    "NamedTuple": (
        "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    y: int = 2\n    def sum(self): return self.x + self.y",
        "(P(1), P(1).sum(), P._fields, hasattr(P(1), '__dict__'))",
        ((1, 2), 3, ("x", "y"), False),
    ),
    "a class in a class": (
        "class A:\n    class B:\n        x = 1",
        "(A.B.__qualname__, A.B().x)",
        ("A.B", 1),
    ),
    "msgspec.Struct": ("import msgspec\nclass P(msgspec.Struct, frozen=True):\n    a: int\n    b: str = 'x'", "(P(1).b, P(2, 'y').a, hash(P(1)) == hash(P(1)))", ("x", 2, True)),
    "ctypes.Structure": ("import ctypes\nclass P(ctypes.Structure):\n    _fields_ = [('x', ctypes.c_int)]\nsent = P(3)", "(sent.x, P(4).x)", (3, 4)),
    "a class in a function reads what the notebook has": (
        "limit = 5\ndef make():\n    class A:\n        own = limit\n        more = own + 1\n    return A",
        "(make().own, make().more)",
        (5, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRIVING)
def test_a_class_arrives_as_it_was_made(notebook, name):
    cell, expression, expected = ARRIVING[name]
    notebook.cell(cell)
    assert notebook.in_rank(expression) == expected


@pytest.mark.parametrize(
    ("cell", "expression"),
    [
        ("class S:\n    __slots__ = ('a',)\n    def __init__(self, a): self.a = a", "S(1)"),
        ("import dataclasses\n@dataclasses.dataclass(slots=True)\nclass S:\n    a: int", "S(1)"),
        ("import dataclasses\n@dataclasses.dataclass(slots=True, frozen=True)\nclass S:\n    a: int", "S(1)"),
        ("class Base:\n    __slots__ = ('a',)\nclass S(Base):\n    __slots__ = ()\nsent = S()\nsent.a = 1", "sent"),
        ("class S(Exception):\n    __slots__ = ('a',)\nsent = S()\nsent.a = 1", "sent"),
    ],
)
def test_an_object_with_slots_comes_back_as_one_of_the_notebooks_class(notebook, cell, expression):
    notebook.cell(cell)
    back = notebook.in_rank(expression)
    assert type(back) is notebook.variables["S"]
    assert back.a == 1


def test_a_class_that_a_rank_has_made_keeps_its_slots(notebook):
    notebook.cell("def make():\n    class S:\n        __slots__ = ('a',)\n    return S")
    back = notebook.in_rank("make()")()
    assert not hasattr(back, "__dict__")


# ---- the marks of dataclasses ------------------------------------------------------------------------------------------------------

CONFIG = """
import dataclasses
from dataclasses import dataclass, field

@dataclass
class Config:
    rate: float
    steps: int = 20
    tags: list = field(default_factory=list)
    _: dataclasses.KW_ONLY
    name: str = "x"

def extend():
    @dataclass
    class Bigger(Config):
        width: int = 8
    return Bigger(0.1)
"""


def test_a_dataclass_can_be_extended_in_a_rank(notebook):
    notebook.cell(CONFIG)
    assert notebook.in_rank("dataclasses.asdict(extend())") == {"rate": 0.1, "steps": 20, "tags": [], "name": "x", "width": 8}
    assert notebook.in_rank("[each.name for each in dataclasses.fields(Config) if each.default is dataclasses.MISSING]") == [
        "rate",
        "tags",
    ]


def test_a_dataclass_that_a_rank_has_made_can_be_extended_here(notebook):
    notebook.cell(
        "from dataclasses import dataclass\ndef make():\n    @dataclass\n    class Made:\n        a: int\n    return Made"
    )

    @dataclasses.dataclass
    class Extended(notebook.in_rank("make()")):
        b: int

    assert Extended(1, 2).b == 2
