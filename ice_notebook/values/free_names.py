"""Which names of the notebook a piece of its code may read before it has assigned them."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

_EXPANDED = re.compile(r"\{([^{}]+)\}|\$(\w+)")  # {expression} and $name in a shell line


def free_names(tree: ast.Module) -> list[str]:
    """Return the names that a cell may read before it has surely assigned them, in the order of their first mention."""
    finder = _FreeNames()
    finder.block(tree.body)
    return list(finder.found)


def is_get_ipython(node: ast.expr) -> bool:
    """Return whether an expression is a call of `get_ipython()`."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "get_ipython"


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
        if isinstance(node.func, ast.Attribute) and is_get_ipython(node.func.value):
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
