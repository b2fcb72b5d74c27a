"""An object of the user's in a pickle: it arrives as it is, and none of the code that its class has for making and changing objects runs.

Python itself rebuilds an object by methods that it looks for on the object, where a proxy answers for another one, and by calls that want
arguments which nobody has kept. Here the class alone is asked, and what is called is what the user's class is built on.
"""

from __future__ import annotations

import copyreg
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: not one of those that are compiled into Python
_MAKING = ("__new__", "__init__", "__getattr__", "__getattribute__", "__setattr__")
_OF_C = (types.MemberDescriptorType, types.GetSetDescriptorType)

PROTOCOL = 5
IsUsers = Callable[[type], bool]  # whether a class is the user's, and no library's
Reduced = tuple[Any, ...]


def reduction_of(kind: type, is_users: IsUsers) -> Callable[[Any], Reduced] | None:
    """Return what reduces the objects of a class where Python's own way could fail; None where Python's is right."""
    users = [base for base in kind.__mro__ if is_users(base)]
    if not users:
        return None
    own = _users_methods(kind, users)
    if issubclass(kind, BaseException):
        has_slots = any(owner in users for owner, _ in slots_of(kind))
        return _reduce_error if (own or has_slots) and _leaves_it_to(kind, _is_built_in) else None
    if is_left_to_python(kind):
        is_proxy = not own.isdisjoint({"__getattr__", "__getattribute__"})
        wants_arguments = "__new__" in own and not _says_arguments(kind)
        if is_proxy or wants_arguments or issubclass(kind, dict) or ("__setattr__" in own and any(slots_of(kind))):
            return lambda value: reduce_plainly(value, is_users)
    elif own and _leaves_it_to(kind, lambda owner: not is_users(owner)):
        return lambda value: _reduce_as_library(value, is_users)
    return None


def is_left_to_python(kind: type) -> bool:
    """Return whether a class leaves it to Python how its objects are pickled."""
    return _leaves_it_to(kind, lambda owner: owner is object)


def arguments_of(base: Any, value: Any) -> tuple[Any, ...]:
    """Return what the `__new__` of a class below an object's own takes to make the like of it."""
    getter = getattr(base, "__getnewargs__", None)
    return () if getter is None else tuple(getter(value))


def slots_of(kind: type) -> Iterable[tuple[type, types.MemberDescriptorType]]:
    """Yield the slots that the objects of a class have, each with the class that has added it."""
    for owner in kind.__mro__:
        if not _is_built_in(owner):
            slots = (part for part in vars(owner).values() if isinstance(part, types.MemberDescriptorType))
            yield from ((owner, slot) for slot in slots if slot.__objclass__ is owner)


def _users_methods(kind: type, users: list[type]) -> set[str]:
    """Return which of the methods that make and change an object are the user's own."""
    owners = {name: next((base for base in kind.__mro__ if name in vars(base)), object) for name in _MAKING}
    return {name for name, owner in owners.items() if owner in users and not _is_in_c(vars(owner)[name])}


def _is_in_c(method: Any) -> bool:
    """Return whether a method of a class is an extension's: an alias such as `__getattr__ = dict.get` is the user's all the same."""
    return isinstance(method, (types.WrapperDescriptorType, types.BuiltinFunctionType)) or type(method).__name__ == "instancemethod"


def _leaves_it_to(kind: type, is_meant: IsUsers) -> bool:
    """Return whether it is the classes that are meant that say how its objects are pickled."""
    names = [name for name in ("__reduce_ex__", "__reduce__") if getattr(kind, name) is not getattr(object, name)]
    owners = [next(base for base in kind.__mro__ if name in vars(base)) for name in names] or [object]
    return kind not in copyreg.dispatch_table and all(is_meant(owner) for owner in owners)


def _is_built_in(kind: type) -> bool:
    return not kind.__flags__ & _HEAP_TYPE


def _says_arguments(kind: type) -> bool:
    return hasattr(kind, "__getnewargs_ex__") or isinstance(getattr(kind, "__getnewargs__", None), types.FunctionType)


# ---- pickling ----------------------------------------------------------------------------------------------------------------------


def reduce_plainly(value: Any, is_users: IsUsers) -> Reduced:
    """Return what an object is pickled as: what it is made from, and what it holds."""
    kind: Any = type(value)
    listed = list(list.__iter__(value)) if issubclass(kind, list) else None
    pairs = list(dict.items(value)) if issubclass(kind, dict) else None
    if hasattr(kind, "__getnewargs_ex__"):
        arguments = (kind, kind, *kind.__getnewargs_ex__(value))
    elif _says_arguments(kind):
        arguments = (kind, kind, kind.__getnewargs__(value))
    else:
        base = next(base for base in kind.__mro__ if "__new__" in vars(base) and not is_users(base))
        arguments = (kind, base, arguments_of(base, value))
    attributes, slots = _state_of(value)
    # `self.__dict__ = self`: the attributes of such a dictionary are its items.
    is_own = attributes is value
    return make_object, arguments, (None if is_own else attributes, slots, listed, pairs, is_own), None, None, fill_object


def _reduce_as_library(value: Any, is_users: IsUsers) -> Any:
    """Return what a library's class says of an object, but without a call of the user's class, and without a look at the object."""
    kind = type(value)
    reduced = value.__reduce_ex__(PROTOCOL)
    if not isinstance(reduced, tuple):
        return reduced
    function, arguments, state, items, pairs, setter = (*reduced, None, None, None, None)[:6]
    is_pythons = _is_pythons(next(base for base in kind.__mro__ if "__reduce__" in vars(base) or "__reduce_ex__" in vars(base)))
    if function is kind and (is_pythons or not _takes(kind, arguments)):
        base = next(base for base in kind.__mro__ if not is_users(base))
        function, arguments = call_base, (kind, base, arguments)
    if state is None and is_pythons:
        # It knows what it is made from, and drops what a class built on it has added.
        held, in_slots = _state_of(value)
        state = held, {(owner, name): part for (owner, name), part in in_slots.items() if is_users(owner)}
    if state is not None and setter is None:
        attributes, slots = (
            state if isinstance(state, tuple) and len(state) == 2 and not hasattr(kind, "__setstate__") else (state, None)
        )
        state, setter = (attributes, slots, None, None, False), fill_object
    return function, arguments, state, items, pairs, setter


def _takes(kind: type, arguments: tuple[Any, ...]) -> bool:
    """Return whether a class can be called with some arguments, as far as it says."""
    try:
        inspect.signature(kind).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # a class in C that says nothing
        return True
    return True


def _is_pythons(kind: type) -> bool:
    return _is_built_in(kind) or kind.__module__.partition(".")[0] in sys.stdlib_module_names


def _reduce_error(value: BaseException) -> Reduced:
    _, arguments, *rest = cast("Reduced", value.__reduce__())
    base = next(base for base in type(value).__mro__ if _is_built_in(base))
    attributes, slots = _state_of(value)
    # Some of Python's own classes keep what their `__init__` got by keyword where no attribute shows it.
    more = rest[0] if rest and isinstance(rest[0], dict) else {}
    return call_base, (type(value), base, arguments), ({**more, **(attributes or {})}, slots), None, None, fill_error


def _state_of(value: Any) -> tuple[Any, dict[tuple[type, str], Any]]:
    """Return what an object holds: its attributes, or what its class says in their place, and what stands in its slots."""
    kind: Any = type(value)
    own = getattr(kind, "__getstate__", None)
    if own is not None and own is not getattr(object, "__getstate__", None):
        return own(value), {}
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:  # it has slots alone
        attributes = None
    slots = {}
    for owner, slot in slots_of(kind):
        try:
            slots[owner, slot.__name__] = slot.__get__(value)
        except AttributeError:  # nothing stands in it
            continue
    return attributes, slots


# ---- loading -----------------------------------------------------------------------------------------------------------------------


def make_object(kind: type, base: Any, arguments: Iterable[Any], keywords: Mapping[str, Any] | None = None) -> Any:
    """Make an object of a class as another one, which is below it, does."""
    return base.__new__(kind, *arguments, **(keywords or {}))


def fill_object(value: Any, state: tuple[Any, ...]) -> None:
    """Put back into an object what it held."""
    attributes, slots, listed, pairs, is_own_dictionary = state
    if listed:
        list.extend(value, listed)
    if pairs:
        dict.update(value, pairs)
    if is_own_dictionary:
        object.__setattr__(value, "__dict__", value)
    setter = getattr(type(value), "__setstate__", None)
    if setter is None:
        _put(value, attributes, slots)
    elif attributes is not None or slots:
        setter(value, (attributes or None, {name: part for (_, name), part in slots.items()}) if slots else attributes)


def call_base(kind: type, base: Any, arguments: Iterable[Any]) -> Any:
    """Make an object as a call of a class below its own does: the user's `__init__` may want what nobody has kept."""
    made = base.__new__(kind, *arguments)
    if base.__init__ is not object.__init__:
        base.__init__(made, *arguments)
    return made


def fill_error(value: BaseException, state: tuple[Any, ...]) -> None:
    """Put back into an exception what it held."""
    attributes, slots = state
    inner = {name: part for name, part in attributes.items() if isinstance(getattr(type(value), name, None), _OF_C)}
    for name, part in inner.items():
        object.__setattr__(value, name, part)
    _put(value, {name: part for name, part in attributes.items() if name not in inner}, slots)


def _put(value: Any, attributes: Mapping[str, Any] | None, slots: Mapping[Any, Any] | None) -> None:
    if attributes:
        object.__getattribute__(value, "__dict__").update(attributes)
    for place, part in (slots or {}).items():
        owner, name = place if isinstance(place, tuple) else (type(value), place)
        getattr(owner, name).__set__(value, part) if isinstance(getattr(owner, name, None), _OF_C) else object.__setattr__(
            value, name, part
        )
