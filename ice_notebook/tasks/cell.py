"""Cell text to what is launched: a function of the notebook, or the cell's body. Read in the kernel, run in the ranks.

Both kinds of task are plain objects that cloudpickle carries to the ranks; `run()` gives the rank's return value.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ice_notebook.errors import SUPPORTED_LINE_MAGICS, CellError, CellSyntaxError
from ice_notebook.values.free_names import free_names, is_get_ipython
from ice_notebook.values.names_in_text import names_in_texts

# What other launchers pass, by the names that it usually has, and the launcher's property that it is.
_LAUNCHERS = {
    **dict.fromkeys(
        ["process_id", "process_index", "process_idx", "process_num", "proc_id", "proc_idx", "proc", "pid", "r"], "rank"
    ),
    **dict.fromkeys(["worker_id", "worker_index", "worker_idx", "i", "idx", "index"], "rank"),
    **dict.fromkeys(["local_id", "local_process_index"], "local_rank"),
    **dict.fromkeys(["world_size", "num_processes", "nprocs", "n_procs", "num_procs"], "world_size"),
    **dict.fromkeys(["ngpus", "n_gpus", "num_gpus", "ngpus_per_node", "local_world_size", "nproc_per_node"], "local_world_size"),
    **dict.fromkeys(["nnodes", "n_nodes", "num_nodes", "group_world_size"], "group_world_size"),
    **dict.fromkeys(["dev", "cuda_id"], "assigned_device"),
    **{name: name for name in ("role_name", "role_world_size", "master_addr", "master_port", "restart_count")},
    **{name: name for name in ("max_restarts", "rdzv_id", "devices", "dist_backend")},
}
_RANK = re.compile(
    r"(?:(?P<local>local)|(?P<group>node|group)|(?P<role>role)|global|world|process|proc|worker|my|current|cur|dist|ddp|gpu)?_?rank(?:_id)?"
)
_DEVICE = re.compile(r"(?:assigned_|local_|my_)?(?:gpu|device)(?:_(?:id|idx|index|num|no|number|rank))?")
_PLAIN_TYPES = frozenset({"int", "float", "complex", "bool", "str", "bytes", "list", "dict", "tuple", "set"})
_VALUE = "_ice_notebook_value"  # where a body leaves the value of its last expression, for the blink of an eye
_NOTHING = object()
_OF_EVERY_MODULE = frozenset({"__builtins__", *vars(types.ModuleType(""))})


# ---- what is launched ----------------------------------------------------------------------------------------------------------------


@dataclass
class FunctionTask:
    """A function with its arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Any:
        """Call the function; an `async def` is run to its end."""
        value = self.function(*self.args, **self.kwargs)
        return _await(value) if inspect.iscoroutine(value) else value


@dataclass
class BodyTask:
    """The body of a cell, with the notebook's values that it mentions."""

    source: str
    file_name: str
    flags: int
    names: dict[str, Any]

    def run(self) -> Any:
        """Execute the body in `__main__`, top-level `await` included, and return the value of its last expression, else None."""
        main = vars(sys.modules["__main__"])
        main.update(self.names)
        tree = ast.parse(self.source)
        last = tree.body[-1]
        if isinstance(last, ast.Expr):
            target = ast.Name(_VALUE, ast.Store())
            tree.body[-1] = ast.copy_location(ast.Assign([ast.copy_location(target, last)], last.value), last)
        code = compile(tree, self.file_name, "exec", flags=self.flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        pending = eval(code, main)  # noqa: S307 - running the user's cell is the point
        if inspect.iscoroutine(pending):
            _await(pending)
        return main.pop(_VALUE, None)


def _await(coroutine: Any) -> Any:
    import asyncio  # noqa: PLC0415 - a launch must not wait for it: few cells need it

    return asyncio.run(coroutine)


# ---- reading a cell --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A cell that is Python, after IPython's transformation of `!` and `%` lines."""

    source: str
    file_name: str  # by which tracebacks and linecache know it
    label: str  # what a person calls it: Cell In[3]
    tree: ast.Module
    flags: int = 0

    @property
    def last_function(self) -> str | None:
        """Return the name of the function that the cell's last top-level statement defines, if it does."""
        last = self.tree.body[-1]
        return last.name if isinstance(last, ast.FunctionDef | ast.AsyncFunctionDef) else None

    def define(self, namespace: dict[str, Any]) -> None:
        """Run the cell in the notebook, as any cell that defines things."""
        __tracebackhide__ = True
        exec(compile(self.tree, self.file_name, "exec", flags=self.flags), namespace)  # noqa: S102

    def body_task(self, namespace: Mapping[str, Any]) -> BodyTask:
        """Return the cell as a task, with those values of the namespace that it may read before it has assigned them."""
        code = compile(self.tree, self.file_name, "exec", flags=self.flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        mentioned = dict.fromkeys([*free_names(self.tree), *names_in_texts(code, namespace)])
        # A notebook may have given another meaning to a name of Python's own.
        found = {name: namespace[name] for name in mentioned if name in namespace and name not in _OF_EVERY_MODULE}
        names = {name: value for name, value in found.items() if value is not getattr(builtins, name, _NOTHING)}
        return BodyTask(self.source, self.file_name, self.flags, names)


def read_cell(source: str, file_name: str, label: str, *, flags: int = 0) -> Cell:
    """Parse a cell.

    Raises:
        CellSyntaxError: it is not Python.
        CellError: it is empty, or holds a magic that ranks do not have.
    """
    try:
        # Compiled once for its errors: some are found only after parsing ('return' outside function).
        compile(source, file_name, "exec", flags=flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        tree = ast.parse(source, file_name)
    except SyntaxError as error:
        raise CellSyntaxError.of(error, label) from None
    except ValueError as error:  # a null character
        raise CellSyntaxError.of(SyntaxError(str(error)), label) from None
    if not tree.body:
        raise CellError.empty()
    return Cell(source, file_name, label, tree, flags)


def check_body(cell: Cell) -> None:
    """Refuse magics that only IPython has, before anything starts."""
    for kind, name in _magics(cell.tree):
        if kind == "run_cell_magic":
            raise CellError.cell_magic(name)
        if kind == "run_line_magic" and name not in SUPPORTED_LINE_MAGICS:
            raise CellError.line_magic(name)


def check_definition(cell: Cell) -> None:
    """Refuse a top-level `await` beside a function: the cell runs in the notebook's own, already running event loop."""
    code = compile(cell.tree, cell.file_name, "exec", flags=cell.flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        raise CellError.awaits(cell.last_function or "")


def arguments_for(function: Callable[..., Any], launcher: object) -> tuple[object, ...]:
    """Return the arguments that a cell passes when the user gave none: the launcher to the one required parameter, or nothing.

    Raises:
        CellError: the function requires more than that.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return ()
    required = [p for p in parameters if p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
    keyword_only = [p.name for p in required if p.kind is p.KEYWORD_ONLY]
    name = getattr(function, "__name__", "the function")
    attributes = [_launchers_property(p.name) for p in required]
    if required and all(attributes):
        raise CellError.no_launcher(name, [p.name for p in required], attributes)
    if len(required) > 1 or keyword_only:
        raise CellError.parameters(name, [p.name for p in required])
    for parameter in required:
        kind = getattr(parameter.annotation, "__name__", parameter.annotation)
        if kind in _PLAIN_TYPES:
            raise CellError.annotated(name, parameter.name, kind)
    return (launcher,) if required else ()


def _launchers_property(name: str) -> str:
    """Return the launcher's property that a parameter of a name usually is in functions for other launchers; nothing for other names."""
    rank = _RANK.fullmatch(name)
    if rank is not None:
        return f"{rank.lastgroup}_rank" if rank.lastgroup else "rank"
    return "assigned_device" if _DEVICE.fullmatch(name) else _LAUNCHERS.get(name, "")


def _magics(tree: ast.AST) -> Iterable[tuple[str, str]]:
    """Yield (method, first argument) of each call of `get_ipython()` that IPython's transformation has made."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_get_ipython(node.func.value):
            first = node.args[0] if node.args else None
            yield node.func.attr, first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""
