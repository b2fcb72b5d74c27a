from __future__ import annotations

import ast
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

from ice_notebook.errors import CellError, CellSyntaxError
from ice_notebook.tasks import cell as cells
from ice_notebook.tasks.cell import BodyTask, FunctionTask, free_names, read_cell

IPYTHON = "get_ipython()"


def read(source: str):
    return read_cell(source, "/tmp/ipykernel_1/2.py", "Cell In[3]")


def run(task: FunctionTask | BodyTask) -> object:
    """Run a task as in a rank: in a thread where no event loop runs, whatever other tests have left running in this one."""
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(task.run).result()


def body(source: str, **names) -> object:
    """Run a cell as a body in a `__main__` of its own, and return its value."""
    main = types.ModuleType("__main__")
    theirs = sys.modules["__main__"]
    sys.modules["__main__"] = main
    try:
        task = read(source).body_task(names)
        value = run(task)
        assert "_ice_notebook_value" not in vars(main)
        return value
    finally:
        sys.modules["__main__"] = theirs


# ---- what is launched --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("def f(): pass", "f"),
        ("x = 1\nasync def f(): pass\n# the end", "f"),
        ("@decorated\ndef f(): pass", "f"),
        ("def f(): pass\nf()", None),
        ("def f(): pass\n'not a docstring'", None),
        ("class A: pass", None),
        ("f = lambda: 1", None),
        ("if True:\n    def f(): pass", None),
    ],
)
def test_a_function_is_launched_when_its_definition_ends_the_cell(source, name):
    assert read(source).last_function == name


def test_a_cell_that_defines_is_run_in_the_notebook_under_its_own_name():
    namespace = {"base": 2}
    read("factor = base * 10\ndef f():\n    return factor").define(namespace)
    assert (namespace["factor"], namespace["f"]()) == (20, 20)
    assert namespace["f"].__code__.co_filename == "/tmp/ipykernel_1/2.py"
    assert namespace["f"].__code__.co_firstlineno == 2


def test_a_function_is_called_with_its_arguments_and_a_coroutine_is_run_to_its_end():
    async def later(a, *, b):
        return a + b

    assert run(FunctionTask(lambda a, b: a - b, (3,), {"b": 1})) == 2
    assert run(FunctionTask(later, (3,), {"b": 1})) == 4


# ---- bodies ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("6 * 7", 42),
        ("x = 6\nx * 7", 42),
        ("x = 42", None),
        ("print", print),
        ("x = 1;", None),
        ("for x in range(3): pass", None),
        ("await later(41)", 42),
        ("x = await later(40)\nawait later(x)", 42),
        ("import asyncio\nasync with asyncio.timeout(1) if hasattr(asyncio, 'timeout') else asyncio.Lock():\n    x = 1\nx", 1),
        ("def f(): return given\nf()", 5),
        ("[given + n for n in range(2)]", [5, 6]),
    ],
)
def test_the_value_of_a_body_is_that_of_its_last_expression(source, value):
    async def later(x):
        return x + 1

    assert body(source, later=later, given=5) == value


def test_a_body_has_the_notebooks_values_that_it_mentions_and_no_others():
    task = read("used + also_used()").body_task({"used": 1, "also_used": len, "other": 2})
    assert task.names == {"used": 1, "also_used": len}


def test_a_body_that_raises_says_in_which_line():
    with pytest.raises(ZeroDivisionError) as caught:
        body("x = 1\n\nx / 0")
    frame = caught.traceback[-1]
    assert (str(frame.path), frame.lineno + 1) == ("/tmp/ipykernel_1/2.py", 3)


def test_a_body_task_is_plain_data():
    task = read("given").body_task({"given": 5})
    assert isinstance(task, BodyTask)
    assert (task.source, task.file_name, task.names) == ("given", "/tmp/ipykernel_1/2.py", {"given": 5})


# ---- what is refused ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["", "\n\n", "  \n\t\n", "# nothing\n"])
def test_a_cell_without_a_statement_is_empty(source):
    with pytest.raises(CellError, match="The cell is empty"):
        read(source)


@pytest.mark.parametrize(
    ("source", "message", "excerpt"),
    [
        ("x = 1\ndef f(:", "invalid syntax (Cell In[3], line 2)", ("    def f(:", "          ^")),
        ("if x:\n    y = (", "'(' was never closed (Cell In[3], line 2)", ("    y = (", "        ^")),
        ("return 3", "'return' outside function (Cell In[3], line 1)", None),
        ("x = '\0'", "source code string cannot contain null bytes (Cell In[3])", None),
    ],
)
def test_a_cell_that_is_not_python_is_refused_with_its_line(source, message, excerpt):
    with pytest.raises(CellSyntaxError) as caught:
        read(source)
    assert str(caught.value) == message
    if excerpt is not None:
        assert tuple(caught.value.excerpt) == excerpt


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"{IPYTHON}.run_cell_magic('bash', '', 'ls')", "%%bash cannot stand inside a launched cell"),
        (f"{IPYTHON}.run_line_magic('matplotlib', 'inline')", "%matplotlib needs IPython, which a rank does not have"),
        (f"for _ in x:\n    {IPYTHON}.run_line_magic('run', 'x.py')", "%run needs IPython"),
    ],
)
def test_magics_that_a_rank_does_not_have_are_refused(source, message):
    with pytest.raises(CellError, match=message):
        cells.check_body(read(source))


@pytest.mark.parametrize("name", sorted(cells.SUPPORTED_LINE_MAGICS))
def test_magics_that_a_rank_has_are_not(name):
    """What comes behind them is what is refused."""
    known = f"{IPYTHON}.run_line_magic('{name}', '')\n{IPYTHON}.system('ls')\nget_ipython.run_cell_magic('x')"
    with pytest.raises(CellError, match="%matplotlib needs IPython"):
        cells.check_body(read(f"{known}\n{IPYTHON}.run_line_magic('matplotlib', '')"))


def test_await_beside_a_function_is_refused_and_inside_of_it_is_not():
    with pytest.raises(CellError, match="`await` beside `f`"):
        cells.check_definition(read("await x\ndef f(): pass"))
    cells.check_definition(read("async def f():\n    await x"))


# ---- who gets the launcher ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "gets_it"),
    [
        (lambda launcher: 0, True),
        (lambda launcher, epochs=3, *args, **kwargs: 0, True),
        (lambda: 0, False),
        (lambda epochs=3: 0, False),
        (lambda *args, **kwargs: 0, False),
        (lambda lora_rank: 0, True),
        (lambda model: 0, True),
        (print, False),
    ],
)
def test_the_launcher_is_passed_to_the_one_required_parameter(function, gets_it):
    assert cells.arguments_for(function, "launcher") == (("launcher",) if gets_it else ())


@pytest.mark.parametrize(
    ("function", "names"),
    [(lambda model, lr: 0, "model and lr"), (lambda *, lr: 0, "lr"), (lambda model, *, lr, n=1: 0, "model and lr")],
)
def test_a_function_that_requires_more_is_refused_with_the_names(function, names):
    with pytest.raises(CellError, match=f"requires {names}: a launched function gets the launcher"):
        cells.arguments_for(function, "launcher")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda rank: 0, "requires rank, which is not passed: .* use launcher.rank."),
        (
            lambda rank, world_size: 0,
            "requires rank and world_size, which are not passed: .* use launcher.rank and launcher.world_size.",
        ),
        (lambda local_rank, epochs=3: 0, "use launcher.local_rank."),
        (lambda gpu: 0, "use launcher.assigned_device."),
        (lambda i: 0, "use launcher.rank."),
        (lambda node_rank: 0, "use launcher.group_rank."),
        (lambda proc_rank: 0, "use launcher.rank."),
        (lambda device_id: 0, "use launcher.assigned_device."),
        (lambda rank, global_rank: 0, "use launcher.rank."),
        (lambda rank, lr: 0, "requires rank and lr: a launched function gets the launcher"),
    ],
)
def test_a_parameter_that_other_launchers_give_a_number_is_refused_with_what_stands_for_it(function, said):
    with pytest.raises(CellError, match=said):
        cells.arguments_for(function, "launcher")


def test_a_parameter_that_is_said_to_be_plain_is_not_given_the_launcher():
    def train(steps: int):
        pass

    with pytest.raises(
        CellError, match=r"`train` requires `steps: int`, and a launched function gets a launcher. Give the value as args="
    ):
        cells.arguments_for(train, "launcher")


# ---- which names a body takes from the notebook ------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 12), reason="syntax of Python 3.12")
@pytest.mark.parametrize("source", ["def f[T](x: T) -> T: return x", "class A[T]:\n    x: T", "type X[T] = list[T]\nX"])
def test_parameters_of_generics_are_a_cells_own(source):
    assert [name for name in free_names(ast.parse(source)) if name != "list"] == []


def test_a_body_takes_a_name_of_pythons_own_that_has_another_meaning_in_the_notebook():
    assert body("input + sum([3, 4])", input=5, sum=sum) == 12


def test_a_body_takes_what_its_texts_mention_where_they_are_evaluated():
    assert body("limit = 2\neval('threshold + limit')", threshold=3, limit=1, unused=4) == 5
    assert set(read("eval('a + 1')\n'c'").body_task({"a": 1, "c": 2, "eval": eval}).names) == {"a"}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("x", ["x"]),
        ("x = 1\nx", []),
        ("x = x + 1", ["x"]),
        ("x += 1", ["x"]),
        ("x: int = 1\nx", ["int"]),
        ("x: T\nx", ["T", "x"]),
        ("print(len([]))", ["print", "len"]),
        ("(y := x) + y", ["x"]),
        ("a, *b = c\na, b", ["c"]),
        ("a.b = c\nd[e] = f", ["c", "a", "f", "d", "e"]),
        ("del x\nx", ["x"]),
        ("del x", ["x"]),
        ("del x.y, z['k']", ["x", "z"]),
        ("x = 1\ndel x", []),
        ("if a:\n    del x", ["a", "x"]),
        ("x = 1\ndel x\nx", ["x"]),
        # imports
        ("import a.b, c as d\na, d, c", ["c"]),
        ("from a import b as c, d\nb, c, d", ["b"]),
        # ways that may not be taken
        ("if a:\n    x = 1\nx", ["a", "x"]),
        ("if a:\n    x = 1\nelse:\n    x = 2\nx", ["a"]),
        ("x = 1 if a else b", ["a", "b"]),
        ("for i in a:\n    x = i\nx, i", ["a", "x", "i"]),
        ("while a:\n    x = 1\nx", ["a", "x"]),
        ("try:\n    import a\nexcept ImportError:\n    a = None\na", ["ImportError"]),
        ("try:\n    x = f()\nexcept E as e:\n    pass\nx", ["f", "E", "x"]),
        ("try:\n    x = f()\nexcept E as e:\n    print(e)", ["f", "print", "E"]),
        ("try:\n    x = 1\nfinally:\n    y = 2\nx, y", []),
        ("with a as b, c:\n    x = b\nx", ["a", "c"]),
        (
            "match a:\n    case [x, *y]:\n        x, y\n    case {'k': z, **r}:\n        z, r\n    case P(q=w) as v:\n        w, v",
            ["a", "P"],
        ),
        # functions and classes
        ("def f(a, b=c):\n    return a + b + d", ["c", "d"]),
        ("def f():\n    return x\nx = 1\nf()", ["x"]),
        ("def f():\n    x = 1\n    return x", []),
        ("def f():\n    global x\n    x = 1", ["x"]),
        ("def f():\n    x = 1\n    del x", []),
        ("class A:\n    x = 1\n    def f(self):\n        return x", ["x"]),
        ("class A:\n    x = 1\n    y = x", []),
        ("@decorate\ndef f(a: A) -> R: pass", ["decorate", "A", "R"]),
        ("f = lambda a, b=c: a + b + d", ["c", "d"]),
        ("class A:\n    def load(self):\n        return load()", ["load"]),
        ("class A(Base, metaclass=M):\n    x = y\n    def f(self):\n        return z", ["Base", "M", "y", "z"]),
        ("def outer():\n    a = 1\n    def inner():\n        return a + b\n    return inner", ["b"]),
        # comprehensions
        ("[i + a for i in b if c]", ["b", "c", "a"]),
        ("{k: v for k, v in a.items()}\nk", ["a", "k"]),
        ("[i for row in a for i in row]", ["a"]),
        ("i = 1\n[i for i in i]", []),
        # lines for the shell
        (f"{IPYTHON}.system('echo {{a + b}} $c {{no: python}}')", ["a", "b", "c"]),
        (f"x = {IPYTHON}.getoutput('ls')\nx", []),
        (f"{IPYTHON}.system('cat')", []),
        (f"{IPYTHON}.run_line_magic('time', 'f(x)')", ["f", "x"]),
        (f"{IPYTHON}.run_line_magic('time', 'y = x')\ny", ["x"]),
        (f"{IPYTHON}.run_line_magic('env', 'A={{value}}')", ["value"]),
        (f"{IPYTHON}.run_line_magic('cd', 'data')", []),
    ],
)
def test_a_body_takes_the_names_that_it_may_read_before_it_has_assigned_them(source, names):
    assert [name for name in free_names(ast.parse(source)) if name != "get_ipython"] == names
