"""A function of the user's in a pickle: its code with the name of its cell, what it mentions, and what wraps it."""

from __future__ import annotations

import dis
import functools
import importlib
import inspect
import marshal
import types
from collections.abc import Callable, Iterator
from typing import Any

from ice_notebook.host.unknown_forms import note_unknown_form
from ice_notebook.values.names_in_text import names_in_annotations, names_in_texts
from ice_notebook.values.objects import Reduced

ShownAs = Callable[[str], str]  # from the name of a source file to the one by which the code is to be known

# ---- code --------------------------------------------------------------------------------------------------------------------------


def reduce_code(code: types.CodeType, shown_as: ShownAs) -> Reduced | None:
    """Return what a code object is pickled as: Python's own form of it, in which it keeps its file and lines whoever pickles functions.

    None when code holds what that form cannot: then it was not compiled by Python.
    """
    try:
        return load_code, (marshal.dumps(_renamed(code, shown_as)),)
    except ValueError:
        return None


def load_code(data: bytes, shown_as: ShownAs = str) -> types.CodeType:
    """Return a code object that was reduced."""
    code: types.CodeType = marshal.loads(data)  # noqa: S302 - it is part of a pickle, which is no less
    return _renamed(code, shown_as)


def _renamed(code: types.CodeType, shown_as: ShownAs) -> types.CodeType:
    name = shown_as(code.co_filename)
    if name == code.co_filename:
        return code
    constants = tuple(_renamed(each, shown_as) if isinstance(each, types.CodeType) else each for each in code.co_consts)
    return code.replace(co_filename=name, co_consts=constants)


# ---- what a function mentions ------------------------------------------------------------------------------------------------------


def complete(function: types.FunctionType, reduced: Reduced) -> None:
    """Add to what a function is pickled as what cloudpickle does not look at: what a class inside it mentions, a text, or an annotation.

    Its form (3.0 to 3.1.3) holds variables, and what is set on the function, in the second part of the state.
    """
    code, variables = function.__code__, function.__globals__
    found = (*_names_in_classes(code), *names_in_texts(code, variables), *names_in_annotations(function.__annotations__))
    names = [name for name in found if name in variables]
    parameters = getattr(function, "__type_params__", ())  # of `def f[T]`, from Python 3.12 on
    if not names and not parameters:
        return
    state = reduced[2] if len(reduced) == 6 else None
    parts = state[1] if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict) else {}
    if not isinstance(parts.get("__globals__"), dict):
        note_unknown_form("cloudpickle", "a function", "What only a class inside a function mentions may not arrive.")
        return
    parts["__globals__"].update({name: variables[name] for name in names})
    if parameters:
        parts["__type_params__"] = parameters


def _names_in_classes(code: types.CodeType) -> Iterator[str]:
    """Yield what the bodies of classes inside a function read before they assign it."""
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            if not inner.co_flags & inspect.CO_OPTIMIZED:
                yield from _read_first(inner)
            yield from _names_in_classes(inner)


def _read_first(body: types.CodeType) -> Iterator[str]:
    assigned = set()
    for operation in dis.get_instructions(body):
        if operation.opname == "STORE_NAME":
            assigned.add(operation.argval)
        elif operation.opname in {"LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"} and operation.argval not in assigned:
            yield operation.argval


# ---- what wraps a function ---------------------------------------------------------------------------------------------------------


def reduce_cached(value: Any) -> Reduced:
    """Return what a function with `functools.lru_cache` is pickled as: it begins with an empty cache where it arrives."""
    settings = value.cache_parameters()
    attributes = {name: part for name, part in vars(value).items() if name not in {"__wrapped__", "cache_parameters"}}
    return make_cached, (value.__wrapped__, settings["maxsize"], settings["typed"]), attributes


def make_cached(function: Any, maxsize: int | None, typed: bool) -> Any:  # noqa: FBT001 - as lru_cache has them
    """Return a function with a cache."""
    return functools.lru_cache(maxsize, typed)(function)


def reduce_wrapper(function: types.FunctionType) -> Reduced | None:
    """Return what a wrapper that a library has put around a function is pickled as; None when it is none that is known."""
    if function.__code__ is _dispatching_code():
        return _reduce_dispatching(function)
    if hasattr(function, "_torchdynamo_orig_callable"):
        return _reduce_compiled(function)
    return None


@functools.cache
def _dispatching_code() -> types.CodeType:
    code: types.CodeType = functools.singledispatch(print).__code__  # type: ignore[attr-defined]
    return code


def _reduce_dispatching(function: Any) -> Reduced:
    implementations = dict(function.registry)
    default = implementations.pop(object)
    made = {"registry", "dispatch", "register", "_clear_cache", "__wrapped__"}
    attributes = {name: part for name, part in vars(function).items() if name not in made}
    return make_dispatching, (default,), (implementations, attributes), None, None, fill_dispatching


def make_dispatching(default: Any) -> Any:
    """Return a function that dispatches by the type of its argument."""
    return functools.singledispatch(default)


def fill_dispatching(function: Any, state: tuple[dict[type, Any], dict[str, Any]]) -> None:
    """Give such a function its implementations."""
    implementations, attributes = state
    for kind, implementation in implementations.items():
        function.register(kind, implementation)
    vars(function).update(attributes)


def _reduce_compiled(function: Any) -> Reduced | None:
    """Return what `torch.compile(function)` is pickled as: the function, to be compiled again as it was told.

    torch (2.6 to 2.13) keeps that in an `OptimizeContext`, which the wrapper has in its closure as `self`, and there at the bottom of
    some wrappers of the backend.
    """
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    context = cells["self"].cell_contents if "self" in cells else None
    if type(context).__name__ != "OptimizeContext":
        return None  # torch.compiler.disable, which travels as any wrapper does
    backend: Any = getattr(context, "callback", None)
    while (
        inner := getattr(backend, "_torchdynamo_orig_backend", getattr(backend, "_torchdynamo_orig_callable", None))
    ) is not None:
        backend = inner
    told: dict[str, Any] = {"backend": backend}
    if type(backend).__name__ == "_TorchCompileInductorWrapper":
        told = {"backend": "inductor", "options": backend.config or None}
    elif type(backend).__name__ == "_TorchCompileWrapper":
        told = {"backend": backend.compiler_fn, **backend.kwargs}
    told |= {"dynamic": getattr(backend, "dynamic", None), "fullgraph": getattr(context, "fullgraph", False)}
    return compile_again, (function._torchdynamo_orig_callable, told)


def compile_again(function: Any, told: dict[str, Any]) -> Any:
    """Return a function as torch compiles it here."""
    return importlib.import_module("torch").compile(function, **told)
