"""An enum of the user's in a pickle: with all its members, aliases too, as they are. Its own code does not run again to make them."""

from __future__ import annotations

import enum
from typing import Any

import cloudpickle

from ice_notebook.host.unknown_forms import note_unknown_form
from ice_notebook.values.classes import ClassMaker, maker_of
from ice_notebook.values.objects import IsUsers, Reduced, arguments_of

_PYTHONS_OWN = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})  # what Python itself puts into a member


def reduce_enum(kind: type[enum.Enum], reduced: Reduced, is_users: IsUsers) -> Reduced:
    """Return what an enum is pickled as, given what cloudpickle (3.0 to 3.1.3) pickles it as.

    That has the members made anew from their values: without aliases, and without what the enum's `__new__` and `__init__` have done.
    """
    make = getattr(cloudpickle.cloudpickle, "_make_skeleton_class", None)
    _, arguments, state, items, pairs, fill = reduced
    if make is None or not (isinstance(arguments, tuple) and len(arguments) == 7 and isinstance(arguments[3], dict)):
        note_unknown_form("cloudpickle", "an enum", "Enums that have aliases, or an __init__, may not arrive as they are.")
        return reduced
    bases, name, qualname, _, module, tracked, extra = arguments
    found = maker_of(kind, is_users, {})
    maker = found if isinstance(found, ClassMaker) else ClassMaker(found, found, None, None, {})
    boundary = getattr(kind, "_boundary_", None)  # of flags, from Python 3.11 on
    keywords = {} if boundary is None else {"boundary": boundary}
    base = next(each for each in kind.__mro__ if "__new__" in vars(each) and not is_users(each) and not issubclass(each, enum.Enum))
    parts = {name: (base, arguments_of(base, member), member.value) for name, member in kind.__members__.items()}
    made = EnumMaker(maker.meta, maker.librarys, maker.users, maker.starter, keywords, parts)
    held, slots = state
    held = {name: part for name, part in held.items() if name not in kind.__members__}
    members = {name: _own_attributes(member) for name, member in kind.__members__.items() if name == member.name}
    variables = {"__module__": module, "__qualname__": qualname}
    return make, (made, name, bases, variables, tracked, extra), (fill, (held, slots), members), items, pairs, fill_enum


def _own_attributes(member: enum.Enum) -> dict[str, Any]:
    return {name: part for name, part in vars(member).items() if name not in _PYTHONS_OWN}


class EnumMaker(ClassMaker):
    """Makes an enum with its members: each by a class that is not the user's, with the value that it has."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments[:-1])
        self.parts: dict[str, tuple[Any, tuple[Any, ...], Any]] = arguments[-1]

    def __call__(self, name: str, bases: tuple[type, ...], variables: dict[str, Any]) -> type:
        """Make the enum."""
        body = self.librarys.__prepare__.__func__(self.meta, name, bases)
        for variable, part in {**variables, "__new__": _make_member, "__init__": _leave_member}.items():
            body[variable] = part
        for member, parts in self.parts.items():
            body[member] = _Parts(*parts)
        with self.without_users_init_subclass():
            made: type = self.librarys.__new__(self.meta, name, bases, body, **self.keywords)
        return made

    def __reduce__(self) -> Reduced:
        function, arguments = super().__reduce__()
        return function, (*arguments, self.parts)


class _Parts:
    """Stands for a member in the body of an enum that is being made."""

    def __init__(self, base: Any, arguments: tuple[Any, ...], value: Any) -> None:
        self.base = base
        self.arguments = arguments
        self.value = value


def _make_member(kind: type, *given: Any) -> Any:
    parts = given[0] if isinstance(given[0], _Parts) else given[0][0]  # an enum of tuples wraps it once more
    made = parts.base.__new__(kind, *parts.arguments)
    made._value_ = parts.value
    return made


def _leave_member(member: enum.Enum, *_: Any) -> None:
    """Stand in for the enum's `__init__` while its members are made."""


def fill_enum(kind: Any, state: tuple[Any, Any, dict[str, dict[str, Any]]]) -> None:
    """Put into an enum what it holds, and into its members what its own code has put there."""
    fill, own, members = state
    for name, ours in (("__init__", _leave_member), ("__new_member__", _make_member)):
        found = vars(kind).get(name)
        if getattr(found, "__func__", found) is ours:
            type.__delattr__(kind, name)
    fill(kind, own)
    for name, attributes in members.items():
        vars(kind.__members__[name]).update(attributes)
