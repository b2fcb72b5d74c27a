"""Objects of Python that by themselves do not travel, or not as they are."""

from __future__ import annotations

import sys

import pytest

ARRIVING = {
    "NewType": (
        "import typing\nId = typing.NewType('Id', int)\nOther = typing.NewType('Other', Id)\ndef use(x: Id) -> Id: return Id(x)",
        "(use(3), Id.__name__, Id.__module__, Other.__supertype__ is Id)",
        (3, "Id", "__main__", True),
    ),
    "ParamSpec": (
        ("from typing import *\nP = ParamSpec('P')\nT = TypeVar('T')\ndef keep(f: Callable[P, T]) -> Callable[P, T]:\n"
        "    def call(*args: P.args, **kwargs: P.kwargs) -> T: return f(*args, **kwargs)\n    return call\n@keep\ndef add(x): return x + 1\n"
        "class G(Generic[P, T]): pass"),
        "(add(2), G.__parameters__ == (P, T), P.__name__, P.__module__)",
        (3, True, "P", "__main__"),
    ),
    "weak dictionaries": (
        "import weakref\nclass O: pass\none = O()\nv, k, s = weakref.WeakValueDictionary(a=one), weakref.WeakKeyDictionary({one: 5}), weakref.WeakSet([one])",
        "(v['a'] is one, k[one], one in s)",
        (True, 5, True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRIVING)
def test_an_object_of_python_arrives(notebook, name):
    cell, expression, expected = ARRIVING[name]
    notebook.cell(cell)
    assert notebook.in_rank(expression) == expected


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TypeVarTuple is of Python 3.11")
def test_a_type_var_tuple_arrives(notebook):
    notebook.cell("from typing import *\nTs = TypeVarTuple('Ts')\nclass G(Generic[Unpack[Ts]]): pass\nheld = [Ts]")
    assert notebook.in_rank("(held[0] is Ts, G.__parameters__ == (Ts,), Ts.__name__)") == (True, True, "Ts")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="`type X = …` is of Python 3.12")
def test_a_name_for_a_type_arrives(notebook):
    notebook.cell("type Pair[T] = tuple[T, T]")
    assert notebook.in_rank("(Pair.__name__, Pair[int].__origin__ is Pair)") == ("Pair", True)
