"""Objects of Python, IPython and torch that by themselves do not travel, or not as they are, and the form in which they do."""

from __future__ import annotations

import builtins
import functools
import importlib
import io
import sys
import threading
import typing
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from ice_notebook.values.functions import reduce_cached
from ice_notebook.values.objects import PROTOCOL, Reduced
from ice_notebook.values.refusals import OPERATOR, CannotTravel

Reducer = Callable[[Any], Any]

# ---- IPython -----------------------------------------------------------------------------------------------------------------------


def reduce_found_there(name: str) -> Reducer:
    """Return a reducer of what each process has of its own by a name: the notebook's `exit` is Python's in a rank."""
    return lambda _: (found_there, (name,))


def found_there(name: str) -> Any:
    """Return what a name that IPython gives to every notebook means in this process."""
    main = vars(sys.modules["__main__"])
    found = main[name] if name in main else getattr(builtins, name, None)
    return functools.partial(_missing, name) if found is None else found


def _missing(name: str, *arguments: Any) -> typing.NoReturn:
    if name in {"exit", "quit"}:  # an interpreter that was started without `site` has none
        raise SystemExit(*arguments)
    raise NameError(f"name {name!r} is not defined")


def is_ipythons_open(function: Any) -> bool:
    """Return whether it is the `open` that IPython puts into a notebook, which refuses descriptors of the notebook's."""
    is_named_so: bool = function.__name__ == "open"
    return is_named_so and function.__globals__.get("__name__") == "IPython.core.interactiveshell"


def is_of_shell(value: Any) -> bool:
    """Return whether a method is the `get_ipython` that IPython puts into a notebook."""
    return value.__name__ == "get_ipython" and any(kind.__name__ == "InteractiveShell" for kind in type(value.__self__).__mro__)


def named(module: str, name: str) -> Any:
    """Return what a module has by a name; a new `object()` where it has none."""
    found = find_named(module, name)
    return found if type(found) is object else object()


def find_named(module: str, name: str) -> Any:
    """Return what an imported module has by a name, which may have dots; None when it has nothing."""
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


# ---- typing ------------------------------------------------------------------------------------------------------------------------


def _reduce_new_type(value: Any) -> Reduced:
    return typing.NewType, (value.__name__, value.__supertype__), dict(vars(value))


def _reduce_parameter(value: Any) -> Reduced:
    """Return what a ParamSpec or a TypeVarTuple is pickled as."""
    given = {
        name: getattr(value, f"__{name}__")
        for name in ("bound", "covariant", "contravariant")
        if getattr(value, f"__{name}__", None)
    }
    return make_parameter, (type(value), value.__name__, value.__module__, given)


def make_parameter(kind: Any, name: str, module: str, given: Mapping[str, Any]) -> Any:
    """Return a parameter of a generic class or function."""
    made = kind(name, **given)
    made.__module__ = module
    return made


def _reduce_alias(value: Any) -> Reduced:
    """Return what `type X = …` (Python 3.12) is pickled as."""
    return make_alias, (type(value), value.__name__, value.__value__, value.__type_params__)


def make_alias(kind: Any, name: str, value: Any, parameters: Any) -> Any:
    """Return a name for a type."""
    return kind(name, value, type_params=parameters)


# ---- functools and weakref ---------------------------------------------------------------------------------------------------------


def _reduce_cached_property(value: Any) -> Reduced:
    """Return what a `functools.cached_property` is pickled as: until Python 3.12 it has a lock, of which any other is as good."""
    held = dict(vars(value))
    has_lock = held.pop("lock", None) is not None
    return object.__new__, (type(value),), (held, has_lock), None, None, fill_cached_property


def fill_cached_property(value: Any, state: tuple[dict[str, Any], bool]) -> None:
    """Put back what a cached property held, with a lock of its own where it had one."""
    held, has_lock = state
    vars(value).update(held, **({"lock": threading.RLock()} if has_lock else {}))


def _reduce_weak_mapping(value: Any) -> Reduced:
    """Return what a dictionary with weak references is pickled as: what it holds stays where something else that travels holds it."""
    return type(value), (), None, None, iter(list(value.items()))


# ---- torch -------------------------------------------------------------------------------------------------------------------------


def _reduce_data_loader(value: Any) -> Any:
    """Return what a DataLoader is pickled as: without the iterator over its running workers, which persistent ones leave in it."""
    reduced = value.__reduce_ex__(PROTOCOL)
    if isinstance(reduced, tuple) and len(reduced) > 2 and isinstance(reduced[2], dict) and reduced[2].get("_iterator") is not None:
        return (*reduced[:2], {**reduced[2], "_iterator": None}, *reduced[3:])
    return reduced


def _reduce_optimizer(value: Any) -> Any:
    """Return what an optimizer is pickled as: with its hooks and other attributes, and known to the scheduler that counts its steps.

    torch (2.6 to 2.13) itself keeps the parameters and their state, and drops the rest.
    """
    reduced = value.__reduce_ex__(PROTOCOL)
    if not (isinstance(reduced, tuple) and len(reduced) > 2 and isinstance(reduced[2], dict) and not any(reduced[3:])):
        return reduced
    attributes = {name: part for name, part in vars(value).items() if name != "step"}
    is_counted = hasattr(vars(value).get("step"), "_wrapped_by_lr_sched")
    return (*reduced[:2], ({**attributes, **reduced[2]}, is_counted), None, None, fill_optimizer)


def fill_optimizer(value: Any, state: tuple[dict[str, Any], bool]) -> None:
    """Put back what an optimizer held, and let it note that it has made a step where a scheduler looks for that."""
    held, is_counted = state
    value.__setstate__(held)
    if not is_counted:
        return
    function, optimizer_of = type(value).step, weakref.ref(value)

    @functools.wraps(function)
    def step(*args: Any, **kwargs: Any) -> Any:
        optimizer: Any = optimizer_of()
        optimizer._opt_called = True
        return function(optimizer, *args, **kwargs)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # torch's own mark, without which its schedulers warn
    value.step = step


def _reduce_operator(value: Any) -> Reduced:
    """Return what one of torch's own operators is pickled as: its name. One that was defined here is not there.

    Raises:
        CannotTravel: it is not torch's own.
    """
    name, overload = getattr(value, "_qualified_op_name", None) or value._schema.name, getattr(value, "_overloadname", None)
    if name.partition("::")[0] not in _TORCHS_OPERATORS:
        raise CannotTravel(value, OPERATOR)
    return find_operator, (name, overload)


def find_operator(name: str, overload: str | None) -> Any:
    """Return an operator of torch's by its name, `aten::add`, and the name of the overload, if one is meant."""
    space, _, own = name.partition("::")
    found = getattr(getattr(importlib.import_module("torch").ops, space), own)
    return found if overload is None else getattr(found, overload)


def _reduce_script(value: Any) -> Any:
    """Return what a scripted module is pickled as: torch's own file of it. That of a device is left to torch, which refuses it."""
    if any(each.device.type != "cpu" for each in (*value.parameters(), *value.buffers())):
        return value.__reduce_ex__(PROTOCOL)
    buffer = io.BytesIO()
    importlib.import_module("torch").jit.save(value, buffer)
    return load_script, (buffer.getvalue(),)


def load_script(data: bytes) -> Any:
    """Return a scripted module."""
    return importlib.import_module("torch").jit.load(io.BytesIO(data))


# ---- which ------------------------------------------------------------------------------------------------------------------------

_TORCHS_OPERATORS = frozenset({"aten", "prim", "prims", "quantized", "c10d", "c10d_functional", "_c10d_functional", "inductor"})
_BY_NAME: dict[str, Reducer] = {
    "IPython.core.autocall.ExitAutocall": reduce_found_there("exit"),
    "functools._lru_cache_wrapper": reduce_cached,
    "functools.cached_property": _reduce_cached_property,
    "typing.NewType": _reduce_new_type,
    "typing.ParamSpec": _reduce_parameter,
    "typing.TypeVarTuple": _reduce_parameter,
    "typing.TypeAliasType": _reduce_alias,
    "typing_extensions.NewType": _reduce_new_type,
    "typing_extensions.ParamSpec": _reduce_parameter,
    "typing_extensions.TypeVarTuple": _reduce_parameter,
    "typing_extensions.TypeAliasType": _reduce_alias,
    "weakref.WeakValueDictionary": _reduce_weak_mapping,
    "weakref.WeakKeyDictionary": _reduce_weak_mapping,
    "torch.utils.data.dataloader.DataLoader": _reduce_data_loader,
    "torch.optim.optimizer.Optimizer": _reduce_optimizer,
    "torch._ops.OpOverloadPacket": _reduce_operator,
    "torch._ops.OpOverload": _reduce_operator,
    "torch.jit._script.RecursiveScriptModule": _reduce_script,
}
_PICKLE_METHODS = ("__reduce_ex__", "__reduce__", "__getstate__")
# These have a name, and are what it says where a module of the ranks has them by it.
HAVE_NAMES = frozenset({"_lru_cache_wrapper", "NewType", "ParamSpec", "TypeVarTuple", "TypeAliasType"})


def reducer_of(kind: type) -> Reducer | None:
    """Return the reducer of a library's class and of those that are built on it, unless one of these says itself how it is pickled."""
    for base in kind.__mro__:
        found = _BY_NAME.get(f"{base.__module__}.{base.__qualname__}")
        if found is not None:
            return found
        if any(method in vars(base) for method in _PICKLE_METHODS):
            return None
    return None
