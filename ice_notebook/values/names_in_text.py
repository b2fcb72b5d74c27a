"""Names of the notebook that stand in a text of the user's code: in what is evaluated, asked of a table, or run by the shell."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType

# Which names in a piece of code say that its texts hold other names, and what finds these.
_AT_NAME = re.compile(r"@([^\W\d]\w*)")
_TABLE = re.compile(r"\b(?:from|join|describe|summarize)\s+([^\W\d]\w*)\b(?!\s*[.(])", re.IGNORECASE)
_SHELL = re.compile(r"\{([^{}]+)\}|\$([^\W\d]\w*)")
# The tables that a query finds by the name of a variable. Another variable of that name is not what a query means.
_TABLE_LIBRARIES = frozenset({"pandas", "polars", "pyarrow", "duckdb", "modin", "cudf", "numpy", "ibis"})


def names_in_texts(code: CodeType, variables: Mapping[str, object]) -> Iterator[str]:
    """Yield the variables that texts of a piece of code, and of those inside it, mention where something reads them there."""
    mentioned = {*code.co_names}
    texts = [constant for constant in code.co_consts if isinstance(constant, str)]
    for marks, names_in in _READERS:
        if texts and not marks.isdisjoint(mentioned):
            yield from (name for text in texts for name in names_in(text) if name in variables)
    if "time" in texts and "run_line_magic" in mentioned:
        yield from (name for text in texts for name in names_in_python(text) if name in variables)
    if texts and not _QUERIES.isdisjoint(mentioned):
        found = (name for text in texts for name in _TABLE.findall(text) if name in variables)
        yield from (name for name in found if type(variables[name]).__module__.partition(".")[0] in _TABLE_LIBRARIES)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in_texts(constant, variables)


def names_in_annotations(annotations: Mapping[str, object]) -> Iterator[str]:
    """Yield what annotations mention that are texts: quoted ones, and all below `from __future__ import annotations`."""
    for annotation in annotations.values():
        if isinstance(annotation, str):
            yield from names_in_python(annotation)


def names_in_python(text: str) -> Iterable[str]:
    """Return the names in a text that is Python; none in any other."""
    try:
        tree = ast.parse(text.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it is something else
        return ()
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]


def _in_shell(text: str) -> Iterator[str]:
    for expression, name in _SHELL.findall(text):
        yield from names_in_python(expression or name)


def _whole(text: str) -> Iterable[str]:
    return (text,)


_QUERIES = frozenset({"sql", "query", "execute", "from_query"})
_READERS: tuple[tuple[frozenset[str], Callable[[str], Iterable[str]]], ...] = (
    (frozenset({"eval", "exec"}), names_in_python),
    (frozenset({"query", "eval"}), _AT_NAME.findall),
    (frozenset({"get_ipython"}), _in_shell),
    (frozenset({"globals"}), _whole),
)
