"""Functions of a cell: their code knows its cell, whatever version of cloudpickle pickles them, and what wraps them arrives too."""

from __future__ import annotations

import sys
import warnings

import pytest
from arriving import in_fresh_process

from ice_notebook.errors import UnknownFormWarning
from ice_notebook.values import functions
from ice_notebook.values.functions import load_code, reduce_code
from ice_notebook.values.pickles import DeviceTensors, dump, load

TO_HOST = DeviceTensors.TO_HOST


def code_of(source: str, file: str):
    return compile(source, file, "exec").co_consts[0]


# ---- code --------------------------------------------------------------------------------------------------------------------------


def test_code_comes_back_with_its_file_its_lines_and_that_of_functions_inside_it():
    code = code_of("def f():\n    def g():\n        return 1\n    return g", "/tmp/1.py")
    load_it, arguments = reduce_code(code, {"/tmp/1.py": "Cell In[1]"}.__getitem__)
    back = load_it(*arguments)
    inner = next(each for each in back.co_consts if hasattr(each, "co_filename"))
    assert (back.co_filename, inner.co_filename) == ("Cell In[1]", "Cell In[1]")
    assert (list(back.co_lines()), inner.co_firstlineno, back.co_code) == (list(code.co_lines()), 2, code.co_code)
    assert load_code(arguments[0], {"Cell In[1]": "/tmp/1.py"}.__getitem__) == code


def test_code_that_python_has_not_compiled_is_left_to_others():
    assert reduce_code(code_of("def f(): return 1", "f").replace(co_consts=(object(),)), str) is None


def test_code_keeps_its_cell_whatever_cloudpickle_makes_of_it(tmp_path, monkeypatch):
    import cloudpickle

    namespace = {"__name__": "__main__"}
    exec(compile("def f():\n    return 1", "/tmp/ipykernel_1/7.py", "exec"), namespace)
    monkeypatch.setitem(cloudpickle.Pickler.dispatch_table, type(namespace["f"].__code__), lambda code: 1 / 0)
    dump(namespace["f"], tmp_path / "f", devices=TO_HOST, main_globals=namespace, shown_as=lambda _: "Cell In[7]")
    with in_fresh_process():
        assert load(tmp_path / "f").__code__.co_filename == "Cell In[7]"
        assert load(tmp_path / "f", file_names={"Cell In[7]": "x"}).__code__.co_filename == "x"


# ---- what a function mentions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "expression", "expected"),
    [
        ("def use():\n    class A:\n        x = limit\n    return A.x", "use()", 5),
        ("def use():\n    class A:\n        class B:\n            x = limit\n    return A.B.x", "use()", 5),
        ("def use():\n    return eval('limit + 1')", "use()", 6),
        ("def use():\n    found = {}\n    exec('y = limit * 2', globals(), found)\n    return found['y']", "use()", 10),
        ("def use():\n    return globals()['limit']", "use()", 5),
        ("def use():\n    def inner():\n        return eval('limit')\n    return inner()", "use()", 5),
        (
            "import typing\nKind = dict\ndef f(x: 'Kind') -> 'list[Kind]': pass",
            "typing.get_type_hints(f)['return'] == list[dict]",
            True,
        ),
        ("import typing\nKind = dict\nclass A:\n    x: 'Kind | None'", "typing.get_type_hints(A)['x'] == dict | None", True),
        (
            "import typing\nclass C: pass\nclass B:\n    x: 'C'\nclass A:\n    x: 'B'",
            "typing.get_type_hints(typing.get_type_hints(A)['x'])['x'].__name__",
            "C",
        ),
    ],
)
def test_what_only_a_class_or_a_text_in_a_function_mentions_arrives(notebook, cell, expression, expected):
    notebook.cell(f"limit = 5\n{cell}")
    assert notebook.in_rank(expression) == expected


def test_another_form_of_a_function_is_said_once_with_library_and_version(monkeypatch):
    functions.note_unknown_form.cache_clear()
    namespace = {"limit": 5}
    exec("def use():\n    class A:\n        x = limit", namespace)
    with pytest.warns(
        UnknownFormWarning, match=r"cloudpickle \d[\d.]* pickles a function in a form that this version .* may not arrive"
    ):
        functions.complete(namespace["use"], ("another", "form"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        functions.complete(namespace["use"], ("another", "form"))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="syntax of Python 3.12")
def test_parameters_of_a_generic_function_or_class_arrive(notebook):
    notebook.cell("class A[T]:\n    x: T\ndef f[T: int](x: T) -> T: return x\nclass B[*Ts, **P](A[int]): pass")
    assert notebook.in_rank("(f(1), f.__type_params__[0].__bound__, A[int].__origin__ is A, B.__mro__[1] is A)") == (
        1,
        int,
        True,
        True,
    )
    assert notebook.in_rank("A.__parameters__ == A.__type_params__") is True


# ---- what wraps a function -------------------------------------------------------------------------------------------------------------

WRAPPED = {
    "a cache": (
        "@functools.lru_cache(maxsize=3, typed=True)\ndef fib(n):\n    'Fibonacci.'\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\nfib.note = 'x'",
        "(fib(10), fib.cache_parameters(), fib.__doc__, fib.note, fib.__name__, fib.cache_info().misses)",
        (55, {"maxsize": 3, "typed": True}, "Fibonacci.", "x", "fib", 11),
    ),
    "a cache is one": ("@functools.cache\ndef f(x): return x\nheld = {'f': f}", "held['f'] is f is __import__('__main__').f", True),
    "caches in a class": (
        ("class V:\n    @functools.cache\n    def a(self, x): return x\n    @staticmethod\n    @functools.cache\n    def b(x): return x + 1\n"
        "    @classmethod\n    @functools.cache\n    def c(cls, x): return cls.__name__, x\nsent = V()\nbound = sent.a"),
        "(sent.a(1), V.b(1), sent.c(3), bound(4))",
        (1, 2, ("V", 3), 4),
    ),
    "a cache around a closure": (
        "def make(k):\n    @functools.cache\n    def times(x): return k * x\n    return times\ntriple = make(3)",
        "triple(5)",
        15,
    ),
    "a cache around what is no function": ("import operator\nadd = functools.cache(functools.partial(operator.add, 3))", "add(5)", 8),
    "a library's cache by its name": ("import fnmatch\nsent = fnmatch._compile_pattern", "sent is fnmatch._compile_pattern", True),
    "a function by the type of its argument": (
        ("@functools.singledispatch\ndef text(x): return 'other'\n@text.register\ndef _(x: list): return [text(each) for each in x]\n"
        "@text.register(int)\ndef _(x): return 'int'\ntext.note = 'x'"),
        "(text([1, 'a', [2]]), text.note, text.__name__, sorted(each.__name__ for each in text.registry))",
        (["int", "other", ["int"]], "x", "text", ["int", "list", "object"]),
    ),
    "a method by the type of its argument": (
        "class A:\n    @functools.singledispatchmethod\n    def m(self, x): return 'other'\n    @m.register\n    def _(self, x: int): return 'int'",
        "(A().m(1), A().m('a'))",
        ("int", "other"),
    ),
    "a cached property": (
        "class A:\n    @functools.cached_property\n    def p(self): return [1]\nsent = A()",
        "(sent.p, sent.p is sent.p, 'p' in vars(sent))",
        ([1], True, True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_what_wraps_a_function_arrives(notebook, name):
    cell, expression, expected = WRAPPED[name]
    notebook.cell(f"import functools\n{cell}")
    assert notebook.in_rank(expression) == expected


def test_a_function_with_a_cache_comes_back(notebook):
    notebook.cell("import functools\ndef make():\n    @functools.cache\n    def f(x): return 2 * x\n    return f")
    assert notebook.in_rank("make()")(4) == 8


# ---- what IPython gives to notebooks -----------------------------------------------------------------------------------------------------


def test_names_that_ipython_gives_to_notebooks_are_those_of_the_rank(notebook):
    pytest.importorskip("IPython")
    from IPython.core.interactiveshell import InteractiveShell, _modified_open

    shell = InteractiveShell()
    notebook.variables |= {"exit": shell.exiter, "quit": shell.exiter, "get_ipython": shell.get_ipython, "open": _modified_open}
    notebook.cell(
        """
        import builtins
        def names():
            try:
                get_ipython()
            except NameError as error:
                said = str(error)
            return exit is builtins.exit, quit is builtins.exit, open is builtins.open, said
        """
    )
    assert notebook.in_rank("names()") == (True, True, True, "name 'get_ipython' is not defined")
