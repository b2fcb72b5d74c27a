"""Cell text to what is launched: a function of the notebook, or the cell's body. Read in the kernel, run in the ranks.

Both kinds of task are plain objects that cloudpickle carries to the ranks; `run()` gives the rank's return value.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ice_notebook.errors import CellError, CellSyntaxError
from ice_notebook.names_in_text import names_in_texts

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
SUPPORTED_LINE_MAGICS = frozenset({"time", "cd", "pwd", "env"})  # rank/shell.py knows them
_VALUE = "_ice_notebook_value"  # where a body leaves the value of its last expression, for the blink of an eye
_NOTHING = object()
_OF_EVERY_MODULE = frozenset({"__builtins__", *vars(types.ModuleType(""))})
_EXPANDED = re.compile(r"\{([^{}]+)\}|\$(\w+)")  # {expression} and $name in a shell line


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
            raise CellError.line_magic(name, sorted(SUPPORTED_LINE_MAGICS))


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
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_get_ipython(node.func.value):
            first = node.args[0] if node.args else None
            yield node.func.attr, first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


def _is_get_ipython(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "get_ipython"


# ---- which names a body takes from the notebook ----------------------------------------------------------------------------------------


def free_names(tree: ast.Module) -> list[str]:
    """Return the names that a cell may read before it has surely assigned them, in the order of their first mention."""
    finder = _FreeNames()
    finder.block(tree.body)
    return list(finder.found)


class _FreeNames(ast.NodeVisitor):
    """Follows the statements in order. A name counts as the cell's own only when every way to its use has assigned it.

    Functions and classes inside are taken whole: what they mention and do not bind themselves is found, assigned or not yet.
    """

    def __init__(self, assigned: Iterable[str] = (), *, in_class: bool = False) -> None:
        self.assigned = set(assigned)
        self.found: dict[str, None] = {}
        self.around = set(self.assigned) if in_class else None  # what functions see of it: not what their class's body assigns

    def block(self, statements: Iterable[ast.stmt]) -> None:
        for statement in statements:
            self.visit(statement)

    def branch(self, *blocks: Iterable[ast.AST]) -> list[set[str]]:
        """Follow alternatives, each from here, and return what each has assigned at its end."""
        ends = []
        before = self.assigned
        for nodes in blocks:
            self.assigned = set(before)
            for node in nodes:
                self.visit(node)
            ends.append(self.assigned)
        self.assigned = before
        return ends

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.read(node.id)
        elif isinstance(node.ctx, ast.Store):
            self.assigned.add(node.id)
        else:  # what `del` takes away must be there
            self.read(node.id)
            self.assigned.discard(node.id)

    def read(self, name: str) -> None:
        if name not in self.assigned:
            self.found.setdefault(name)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.annotation)
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.read(node.target.id)
        self.visit(node.value)
        self.visit(node.target)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self.visit(node.target)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.assigned.update((alias.asname or alias.name).split(".")[0] for alias in node.names)

    visit_ImportFrom = visit_Import  # noqa: N815

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self.assigned = set.intersection(*self.branch(node.body, node.orelse))

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit(node.test)
        self.branch([node.body], [node.orelse])

    def visit_While(self, node: ast.While) -> None:
        self.visit(node.test)
        self.branch(node.body, node.orelse)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self.branch([node.target, *node.body], node.orelse)

    visit_AsyncFor = visit_For  # noqa: N815

    def visit_Try(self, node: ast.Try) -> None:
        (after_body, *_) = self.branch([*node.body, *node.orelse])
        handlers = self.branch(*[[*_caught(handler), *handler.body] for handler in node.handlers])
        for handler in node.handlers:
            if handler.type is not None:
                self.visit(handler.type)
        self.assigned = set.intersection(after_body, *handlers) if handlers else after_body
        self.block(node.finalbody)

    visit_TryStar = visit_Try  # noqa: N815

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)
        self.branch(*[[case.pattern, *([case.guard] if case.guard else []), *case.body] for case in node.cases])

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        self.generic_visit(node)
        if node.name:
            self.assigned.add(node.name)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        if node.name:
            self.assigned.add(node.name)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.generic_visit(node)
        if node.rest:
            self.assigned.add(node.rest)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for outside in (*node.decorator_list, *_defaults(node.args)):
            self.visit(outside)
        with self.type_parameters(node) as own:
            for annotation in _annotations(node):
                self.visit(annotation)
            self.inside(node.body, _parameters(node.args) | own)
        self.assigned.add(node.name)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for outside in _defaults(node.args):
            self.visit(outside)
        self.inside([node.body], _parameters(node.args))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for outside in node.decorator_list:
            self.visit(outside)
        with self.type_parameters(node):
            for outside in (*node.bases, *(keyword.value for keyword in node.keywords)):
                self.visit(outside)
            body = _FreeNames(self.assigned, in_class=True)
            body.block(node.body)
            for name in body.found:
                self.read(name)
        self.assigned.add(node.name)

    def visit_TypeAlias(self, node: Any) -> None:  # Python 3.12
        with self.type_parameters(node):
            self.visit(node.value)
        self.assigned.add(node.name.id)

    @contextlib.contextmanager
    def type_parameters(self, node: Any) -> Iterator[set[str]]:
        """Count the parameters in `def f[T]` as assigned meanwhile (Python 3.12)."""
        own = {parameter.name for parameter in getattr(node, "type_params", ())} - self.assigned
        self.assigned |= own
        yield own
        self.assigned -= own

    def inside(self, nodes: Iterable[ast.AST], parameters: set[str]) -> None:
        """Find what a function mentions and neither takes as a parameter nor assigns anywhere in itself."""
        nodes = list(nodes)
        own = parameters | {
            name.id
            for node in nodes
            for name in ast.walk(node)
            if isinstance(name, ast.Name) and not isinstance(name.ctx, ast.Load)
        }
        shared = {name for node in nodes for found in ast.walk(node) if isinstance(found, ast.Global) for name in found.names}
        outside = self.assigned if self.around is None else self.around
        inner = _FreeNames(outside | (own - shared))
        for node in nodes:
            inner.visit(node)
        for name in (*inner.found, *shared):
            if name not in outside:
                self.found.setdefault(name)

    def comprehension(self, node: Any) -> None:
        self.visit(node.generators[0].iter)
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        rest = [g.iter for g in node.generators[1:]]
        conditions = [condition for g in node.generators for condition in g.ifs]
        self.branch([*(g.target for g in node.generators), *rest, *conditions, *results])

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = comprehension  # noqa: N815

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute) and _is_get_ipython(node.func.value):
            lines = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            is_magic = node.func.attr == "run_line_magic"
            for line in lines[is_magic:]:
                self.shell_line(line)
                if is_magic and lines[0] == "time":
                    self.statement(line)
            return
        self.generic_visit(node)

    def shell_line(self, line: str) -> None:
        """Find the names that `{expression}` and `$name` in a shell line, or in the argument of a line magic, mention."""
        for expression, name in _EXPANDED.findall(line):
            try:
                self.visit(ast.parse(name or expression, mode="eval"))
            except SyntaxError:
                continue  # braces of the shell's own

    def statement(self, line: str) -> None:
        """Find the names in what `%time` is to run."""
        try:
            self.visit(ast.parse(line))
        except SyntaxError:
            return  # it will say so when it runs


def _caught(handler: ast.ExceptHandler) -> list[ast.Name]:
    """Return what `except … as name` assigns, as a node."""
    return [ast.Name(handler.name, ast.Store())] if handler.name else []


def _parameters(arguments: ast.arguments) -> set[str]:
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return {argument.arg for argument in every if argument is not None}


def _defaults(arguments: ast.arguments) -> list[ast.expr]:
    return [default for default in (*arguments.defaults, *arguments.kw_defaults) if default is not None]


def _annotations(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.expr]:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    found = [argument.annotation for argument in every if argument is not None and argument.annotation is not None]
    return [*found, node.returns] if node.returns is not None else found
