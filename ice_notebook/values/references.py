"""The way to an object from the names that the user knows, as `config['log']`, and the line of the function that uses it.

It follows what cloudpickle follows: what a function refers to, containers, attributes, classes that are pickled by value.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ice_notebook.host.installed import is_library
from ice_notebook.values.descriptions import without_addresses

NODES = 200_000  # objects looked at: some tenths of a second, on a path that ends in an error anyway
KEY_CHARACTERS = 40


@dataclass(frozen=True)
class Path:
    """How an object is reached, as the user would write it."""

    text: str
    is_inside: bool = False
    user: types.FunctionType | None = None  # the function that refers to the variable at the head of the text
    variable: str = ""
    head: Path | None = None  # the path of that variable alone
    owner: Path | None = None  # the path of the library's object that the object is a part of: what the user has made

    def to(self, suffix: str) -> Path:
        path = self if self.is_inside else replace(self, text=self.text + suffix)
        return replace(path, head=self.head or self)

    def within(self, whole: Path) -> Path:
        """Return the same path, as one into what a library has put into an object."""
        return replace(self, owner=whole.owner or whole)

    @property
    def inside(self) -> Path:
        return replace(self, is_inside=True, head=self.head or self)

    @classmethod
    def of_variable(cls, name: str, user: types.FunctionType) -> Path:
        path = cls(name, user=user, variable=name)
        return replace(path, head=path)


_TRANSPARENT = frozenset({"__main__", "builtins", "types", "functools", "collections", "itertools"})
# They lead nowhere and are never what stopped a pickler: passed over before a path is made, as a list may hold millions of them.
_LEAVES = frozenset({int, float, complex, str, bytes, bytearray, bool, type(None), types.ModuleType, types.CodeType, range})


def find(names: Mapping[str, object], *, is_wanted: Callable[[object, int], bool], by_value: Sequence[str] = ()) -> Path | None:
    """Return the shortest path to an object that is wanted, None when it is not among the first NODES objects.

    Args:
        names: where to begin, in this order.
        is_wanted: called with an object and how many steps it is away.
        by_value: modules whose functions and classes are pickled by value.
    """
    queue: deque[tuple[object, Path, int]] = deque()
    # Objects that are made on the way stay referenced: the id of one that is gone could be another's.
    seen: dict[int, object] = {}
    for name, value in names.items():
        path = Path(name)
        if is_wanted(value, 0):
            return path
        queue.append((value, path, 0))
    while queue:
        value, path, depth = queue.popleft()
        for child, child_path in _children(value, path, by_value):
            if id(child) in seen or type(child) in _LEAVES:
                continue
            if is_wanted(child, depth + 1):
                return child_path
            if len(seen) >= NODES:
                return None
            seen[id(child)] = child
            queue.append((child, child_path, depth + 1))
    return None


def _children(value: Any, path: Path, by_value: Sequence[str]) -> Iterator[tuple[object, Path]]:
    """Yield what pickling a value leads to, with its path: the same things that cloudpickle follows."""
    if isinstance(value, types.FunctionType):
        if goes_by_reference(value, by_value):
            return
        if is_library(value.__code__.co_filename):  # a wrapper around something of the user's, who knows that by its own name
            yield from ((child, path.inside.within(path)) for child, _ in _function_children(value, path))
        else:
            yield from _function_children(value, path)
    elif isinstance(value, type):
        if not goes_by_reference(value, by_value):
            yield from ((child, path.to(f".{name}")) for name, child in vars(value).items())
            yield from ((base, Path(base.__name__)) for base in value.__bases__)
    elif isinstance(value, types.MethodType):
        yield value.__self__, path.to(".__self__")
        yield value.__func__, path.inside
    elif isinstance(value, (staticmethod, classmethod)):
        yield value.__func__, path
    elif isinstance(value, property):
        yield from ((part, path) for part in (value.fget, value.fset, value.fdel))
    elif isinstance(value, functools.partial):
        yield value.func, path.to(".func")
        yield value.args, path.to(".args")
        yield value.keywords, path.to(".keywords")
    else:
        yield from _container_children(value, path)
        if _is_librarys(type(value)):
            yield from ((child, child_path.within(path)) for child, child_path in _attributes(value, path))
        elif path.owner is not None and type(value).__module__ != "builtins":  # an object of the user's inside of a library's
            yield from ((child, replace(child_path, owner=None)) for child, child_path in _attributes(value, path))
        else:
            yield from _attributes(value, path)
        yield type(value), Path(type(value).__name__)


def _container_children(value: Any, path: Path) -> Iterator[tuple[object, Path]]:
    if isinstance(value, (dict, types.MappingProxyType)):
        for key, child in list(value.items()):
            if type(child) not in _LEAVES:
                yield child, path.to(_item(key))
            if type(key) not in _LEAVES:
                yield key, path.inside
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from ((child, path.to(f".{name}")) for name, child in zip(value._fields, value, strict=False))
    elif isinstance(value, (list, tuple, deque)):
        yield from ((child, path.to(f"[{index}]")) for index, child in enumerate(value) if type(child) not in _LEAVES)
    elif isinstance(value, (set, frozenset)):
        yield from ((child, path.inside) for child in value if type(child) not in _LEAVES)
    elif isinstance(value, types.CellType):
        yield from ((child, path) for child in _contents(value))
    elif type(value).__module__ in {"builtins", "itertools"}:
        # map, zip, chain, memoryview, ...: what they hold is seen only in what they are pickled as.
        yield from ((child, path.inside) for child in _reduced(value))


def _function_children(function: types.FunctionType, path: Path) -> Iterator[tuple[object, Path]]:
    for name in global_names(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name], Path.of_variable(name, function)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        yield from ((child, Path.of_variable(name, function)) for child in _contents(cell))
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    for name, default in zip(arguments[len(arguments) - len(defaults) :], defaults, strict=False):
        yield default, Path.of_variable(name, function)
    for name, default in (function.__kwdefaults__ or {}).items():
        yield default, Path.of_variable(name, function)
    yield from ((child, path.to(f".{name}")) for name, child in vars(function).items())
    yield function.__annotations__, path.inside


def _attributes(value: Any, path: Path) -> Iterator[tuple[object, Path]]:
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        for name, child in list(attributes.items()):
            # torch.nn.Module keeps what is written `model.layer` in `model._modules["layer"]`.
            if name in {"_modules", "_parameters", "_buffers"} and isinstance(child, dict):
                yield from ((part, path.to(f".{key}" if str(key).isidentifier() else f"[{key}]")) for key, part in child.items())
            yield child, path.to(f".{name}")
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if isinstance(vars(kind).get(name), types.MemberDescriptorType):
                child = getattr(value, name, None)
                yield child, path.to(f".{name}")


def _is_librarys(kind: type) -> bool:
    """Return whether a class is a library's whose objects the user does not see into, as one does into a container."""
    if kind.__module__ in _TRANSPARENT or kind.__module__.startswith("torch.nn."):
        return False
    file = getattr(sys.modules.get(str(kind.__module__)), "__file__", None)
    return isinstance(file, str) and is_library(file)


def _contents(cell: types.CellType) -> Iterable[object]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # empty: the variable is not assigned yet
        return ()


def _reduced(value: Any) -> Iterable[object]:
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # it cannot be pickled, so it leads nowhere
        return ()
    return reduced[1:] if isinstance(reduced, tuple) else ()


def _item(key: object) -> str:
    try:
        text = without_addresses(repr(key))
    except Exception:  # the path stays readable without it
        text = "…"
    return f"[{text}]" if len(text) <= KEY_CHARACTERS else "[…]"


def goes_by_reference(value: Any, by_value: Sequence[str] = ()) -> bool:
    """Return whether a function or a class is pickled as its name in a module, which the ranks import."""
    module_name = getattr(value, "__module__", None)
    if not isinstance(module_name, str) or module_name == "__main__":
        return False
    if any(module_name == name or module_name.startswith(f"{name}.") for name in by_value):
        return False
    found: Any = sys.modules.get(module_name)
    for part in str(getattr(value, "__qualname__", getattr(value, "__name__", ""))).split("."):
        found = getattr(found, part, None)
    return found is value


# ---- lines -------------------------------------------------------------------------------------------------------------------------

_GLOBAL_OPERATIONS = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL"})
_LOADS = frozenset(
    {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF", "LOAD_FROM_DICT_OR_GLOBALS"}
)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a code object and those of the functions and classes defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def global_names(code: types.CodeType) -> Iterable[str]:
    """Return the variables from outside that a function and those inside it mention."""
    operations = (operation for part in _codes(code) for operation in dis.get_instructions(part))
    return dict.fromkeys(operation.argval for operation in operations if operation.opname in _GLOBAL_OPERATIONS)


def line_of(code: types.CodeType, name: str) -> int:
    """Return the first line in which a function reads a variable from outside, else the one of its definition."""
    found = []
    for part in _codes(code):
        lines = [(start, end, line) for start, end, line in part.co_lines() if line]
        for operation in dis.get_instructions(part):
            if operation.opname in _LOADS and operation.argval == name:
                found += [line for start, end, line in lines if start <= operation.offset < end]
    return min(found, default=code.co_firstlineno)
