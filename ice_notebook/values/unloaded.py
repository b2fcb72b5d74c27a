"""Which variable of the user's it was that could not be loaded: a pickle that failed is read again, slowly, until it fails there."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

from ice_notebook.values.free_names import free_names
from ice_notebook.values.functions import load_code
from ice_notebook.values.references import global_names


def name_of_unloaded(file: Any, buffers: Iterable[memoryview], find_class: Callable[[str, str], Any]) -> str | None:
    """Return the name of the variable that was being loaded when reading a pickle fails, None when it is not known.

    Python's own unpickler in Python, `pickle._Unpickler` (3.10 to 3.14), leaves what it has read so far on its stacks when it fails: of a
    dictionary that is not finished, the key comes before the value.
    """
    reader_class = getattr(pickle, "_Unpickler", None)
    if reader_class is None:
        return None
    variables: set[str] = set()

    class Reader(reader_class):  # type: ignore[misc, valid-type]
        def find_class(self, module: str, name: str) -> Any:
            found = find_class(module, name)
            return noting if found is load_code else found

    def noting(data: bytes) -> CodeType:
        code = load_code(data)
        variables.update(global_names(code))
        return code

    reader = Reader(file, buffers=buffers)
    try:
        reader.load()
    except BaseException:  # what was to be expected, and of any kind
        levels = [*getattr(reader, "metastack", ()), getattr(reader, "stack", ())]
        return _innermost(levels, variables)
    return None  # it does not fail again


def _innermost(levels: Iterable[list[Any]], variables: set[str]) -> str | None:
    """Return the last text on the stacks that is the name of a variable."""
    found = None
    for level in levels:
        texts = [each for each in level if isinstance(each, str)]
        if "names" in texts and "source" in texts:  # a cell's body: its source is among the texts
            variables.update(_names_in(texts))
        found = next((text for text in reversed(texts) if text in variables), found)
    return found


def _names_in(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        try:
            yield from free_names(ast.parse(text))
        except (SyntaxError, ValueError):
            continue
