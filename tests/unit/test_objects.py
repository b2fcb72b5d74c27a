"""Objects of a cell's class: they arrive without a call of what their class has for making and changing them, and come back."""

from __future__ import annotations

import sys

import pytest

from ice_notebook.errors import PayloadError

# (cell that makes `sent`, expression in the rank, its value)
ARRIVING = {
    "a proxy": (
        "class P:\n    def __init__(self, inner): self.inner = inner\n    def __getattr__(self, name): return getattr(self.inner, name)\nsent = P([1, 1])",
        "sent.count(1)",
        2,
    ),
    "a proxy with slots that passes on what is set": (
        ("import types\nclass P:\n    __slots__ = ('_inner',)\n    def __init__(self, inner): object.__setattr__(self, '_inner', inner)\n"
        "    def __getattr__(self, name): return getattr(object.__getattribute__(self, '_inner'), name)\n"
        "    def __setattr__(self, name, value): setattr(self._inner, name, value)\nsent = P(types.SimpleNamespace(a=5))"),
        "sent.a",
        5,
    ),
    "a proxy for everything": (
        ("class P:\n    def __init__(self, inner): object.__setattr__(self, 'inner', inner)\n"
        "    def __getattribute__(self, name): return getattr(object.__getattribute__(self, 'inner'), name)\nsent = P([1])"),
        "sent.count(1)",
        1,
    ),
    "a dictionary that answers None for every attribute": (
        "class D(dict):\n    __getattr__ = dict.get\n    __setattr__ = dict.__setitem__\nsent = D(a=D(b=1))",
        "(sent.a.b, sent.c)",
        (1, None),
    ),
    "a dictionary that raises KeyError for an attribute": ("class D(dict):\n    __getattr__ = dict.__getitem__\nsent = D(a=1)", "sent.a", 1),
    "a dictionary that is its own attributes": (
        "class D(dict):\n    def __init__(self, **items): super().__init__(items); self.__dict__ = self\nsent = D(a=1)",
        "(sent.a, sent.__dict__ is sent)",
        (1, True),
    ),
    "__new__ with arguments": (
        "class A:\n    def __new__(cls, x): made = super().__new__(cls); made.x = x; return made\nsent = A(3)",
        "sent.x",
        3,
    ),
    "a number with a unit": (
        "class M(float):\n    def __new__(cls, value, unit): made = super().__new__(cls, value); made.unit = unit; return made\nsent = M(2.5, 'kg')",
        "(sent + 1, sent.unit)",
        (3.5, "kg"),
    ),
    "a pair": ("class P(tuple):\n    def __new__(cls, x, y): return super().__new__(cls, (x, y))\nsent = P(1, 2)", "(sent[1], len(sent))", (2, 2)),
    "one object for all": (
        "class A:\n    one = None\n    def __new__(cls):\n        cls.one = cls.one or super().__new__(cls)\n        return cls.one\nsent = A()",
        "A() is sent",
        True,
    ),
    "slots that are set once": (
        ("class A:\n    __slots__ = ('x',)\n    def __init__(self, x): object.__setattr__(self, 'x', x)\n"
        "    def __setattr__(self, *_): raise AttributeError('frozen')\nsent = A(2)"),
        "sent.x",
        2,
    ),
    "a buffer with an argument of its own": (
        ("import collections\nclass B(collections.deque):\n    def __init__(self, size): super().__init__(maxlen=size); self.size = size\n"
        "sent = B(2)\nsent.extend([1, 2, 3])"),
        "(list(sent), sent.maxlen, sent.size)",
        ([2, 3], 2, 2),
    ),
    "a defaultdict with attributes": (
        ("import collections\nclass D(collections.defaultdict):\n    def __init__(self, name): super().__init__(list); self.name = name\n"
        "sent = D('x')\nsent['a'].append(1)"),
        "(sent['a'], sent['b'], sent.name)",
        ([1], [], "x"),
    ),
    "what says itself what it holds": (
        ("import threading\nclass A:\n    def __init__(self): self.x = 1; self.lock = threading.Lock()\n    def __getstate__(self): return {'x': self.x}\n"
        "    def __setstate__(self, state): self.x = state['x'] + 1\n    def __getattr__(self, name): raise AttributeError(name)\nsent = A()"),
        "(sent.x, hasattr(sent, 'lock'))",
        (2, False),
    ),
    "an error with arguments of its own": (
        "class E(Exception):\n    def __init__(self, code, *, text): super().__init__(f'{code}: {text}'); self.code = code\nsent = E(4, text='x')",
        "(str(sent), sent.code)",
        ("4: x", 4),
    ),
    "an OSError with arguments of its own": (
        "class E(OSError):\n    def __init__(self, name): super().__init__(2, 'none', name); self.own = name\nsent = E('f')",
        "(sent.errno, sent.filename, sent.own)",
        (2, "f", "f"),
    ),
    "an ImportError with arguments of its own": (
        "class E(ImportError):\n    def __init__(self, module): super().__init__('x', name=module)\nsent = E('m')",
        "(sent.name, sent.args)",
        ("m", ("x",)),
    ),
    "a date from a text": (
        "import datetime\nclass D(datetime.date):\n    def __new__(cls, text): return super().__new__(cls, *map(int, text.split('-')))\nsent = D('2020-01-02')",
        "sent.isoformat()",
        "2020-01-02",
    ),
    "a path with an attribute that its __init__ has put there": (
        "import pathlib\nclass P(type(pathlib.PurePath())):\n    @property\n    def up(self): return self.parent\nsent = P('/a/b')",
        "str(sent.up)",
        "/a",
    ),
    "what a library makes again by a call of its class": (
        ("import fractions\nclass F(fractions.Fraction):\n    def __new__(cls, text, unit=None): made = super().__new__(cls, text); made.unit = unit; return made\n"
        "    __slots__ = ('unit',)\nsent = F('1/2', 'm')"),
        "(str(sent + 1), sent.unit)",
        ("3/2", "m"),
    ),
    "a mark that is known by its name": ("class N:\n    def __reduce__(self): return 'sent'\nsent = N()", "sent is __import__('__main__').sent", True),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRIVING)
def test_an_object_arrives_as_it_is(notebook, name):
    cell, expression, expected = ARRIVING[name]
    notebook.cell(cell)
    assert notebook.in_rank(expression) == expected


@pytest.mark.parametrize(
    "name", [name for name in ARRIVING if name not in {"what says itself what it holds", "a proxy for everything"}]
)
def test_an_object_comes_back_as_one_of_the_notebooks_class(notebook, name):
    notebook.cell(ARRIVING[name][0])
    assert type(notebook.in_rank("sent")) is type(notebook.variables["sent"])


# ---- marks, which are what they are by being the same ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "expression"),
    [
        (
            "import dataclasses\nsent = [dataclasses.MISSING, dataclasses.KW_ONLY]",
            "sent == [dataclasses.MISSING, dataclasses.KW_ONLY]",
        ),
        ("import configparser\nsent = configparser._UNSET", "sent is configparser._UNSET"),
        ("import traitlets\nsent = traitlets.Undefined", "sent is traitlets.Undefined"),
        ("NOTHING = object()\ndef given(x=NOTHING): return x is not NOTHING", "given() is False"),
        ("sent = [..., NotImplemented]", "sent[0] is ... and sent[1] is NotImplemented"),
    ],
)
def test_a_mark_is_the_same_there(notebook, cell, expression):
    notebook.cell(cell)
    assert notebook.in_rank(expression) is True


def test_a_mark_of_the_notebook_comes_back_as_itself(notebook):
    notebook.cell(
        "class Missing: pass\nMISSING = Missing()\nNOTHING = object()\nclass N:\n    def __reduce__(self): return 'NAMED'\nNAMED = N()"
    )
    back = notebook.in_rank("[MISSING, NOTHING, NAMED]")
    assert [each is notebook.variables[name] for each, name in zip(back, ["MISSING", "NOTHING", "NAMED"], strict=True)] == [
        True
    ] * 3


def test_what_only_a_name_is_kept_of_is_refused_where_the_ranks_have_no_such_name(notebook):
    numpy = pytest.importorskip("numpy")
    notebook.variables["increase"] = numpy.frompyfunc(lambda x: x + 1, 1, 1)
    with pytest.raises(PayloadError, match="`increase` cannot be sent to the ranks: it is an object that is known by a name"):
        notebook.in_rank("increase(1)")


def test_a_library_name_is_kept(notebook):
    notebook.cell("import math, operator\nsent = [math.sqrt, operator.add, len, dict.get]")
    assert notebook.in_rank("(sent[0](4.0), sent[1](1, 2), sent[2]([1]), sent[3]({1: 2}, 1))") == (2.0, 3, 1, 2)
    assert sys.modules["math"].sqrt is notebook.in_rank("sent[0]")
