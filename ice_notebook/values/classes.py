"""A class of the user's in a pickle: it arrives as it was made, and nothing of the user's that makes classes runs a second time.

cloudpickle has an empty class made where it is loaded, and fills it afterwards. `ClassMaker` is what makes the empty one.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

from ice_notebook.host.unknown_forms import note_unknown_form
from ice_notebook.values.objects import IsUsers, Reduced, slots_of
from ice_notebook.values.references import goes_by_reference

_TYPED_DICTS = frozenset({"typing._TypedDictMeta", "typing_extensions._TypedDictMeta"})
_STRUCTS = "msgspec._core.StructMeta"
_STRUCT_OPTIONS = (
    "frozen", "eq", "order", "array_like", "gc", "repr_omit_defaults", "omit_defaults", "forbid_unknown_fields", "weakref", "dict",
    "cache_hash", "tag", "tag_field",
)  # fmt: skip


def reduce_class(kind: Any, reduced: Reduced, is_users: IsUsers) -> Reduced:
    """Return what a class is pickled as, given what cloudpickle (3.0 to 3.1.3) pickles it as.

    That is a function with the metaclass, the name, the bases and the first variables of the class among its arguments, then what the
    class holds, and a function that puts it there.
    """
    make, arguments, state, *rest = reduced
    if not (isinstance(arguments, tuple) and len(arguments) > 3 and arguments[0] is type(kind) and isinstance(arguments[3], dict)):
        note_unknown_form("cloudpickle", "a class", "Classes with __slots__, or whose metaclass takes arguments, may not arrive.")
        return reduced
    meta, name, _, variables, *more = arguments
    variables = (
        {"__qualname__": kind.__qualname__}
        | {name: vars(kind)[name] for name in ("__orig_bases__",) if name in vars(kind)}
        | variables
    )
    keywords = {}
    if _full_name(meta) == _STRUCTS:
        variables |= _struct_variables(kind)
        keywords = {
            name: getattr(kind.__struct_config__, name) for name in _STRUCT_OPTIONS if hasattr(kind.__struct_config__, name)
        }
    elif "__slots__" in vars(kind):
        variables["__slots__"] = _layout_of(kind)
    held, extra = state
    own_slots = {slot.__name__ for owner, slot in slots_of(kind) if owner is kind}
    # Slots, and the fields of a ctypes.Structure, come with the class itself.
    held = {name: part for name, part in held.items() if name not in own_slots and type(part).__name__ != "CField"}
    held |= {name: vars(kind)[name] for name in ("__slots__",) if name in held}  # not as `readable_slots` has it
    maker = maker_of(kind, is_users, keywords)
    # The bases as they are: what stood in the class statement may be a function, such as NamedTuple, that makes another class.
    return make, (maker, name, kind.__bases__, variables, *more), (held, extra), *rest


@contextlib.contextmanager
def readable_slots(kind: type) -> Iterator[None]:
    """Write `__slots__ = "__name"` as `("__name",)` meanwhile: cloudpickle (3.0 to 3.1.3) looks for a variable of just that name."""
    slots = vars(kind).get("__slots__")
    if not isinstance(slots, str) or slots in vars(kind):
        yield
        return
    type.__setattr__(kind, "__slots__", (slots,))
    try:
        yield
    finally:
        type.__setattr__(kind, "__slots__", slots)


def _layout_of(kind: type) -> list[str]:
    """Return the slots that a class adds to its bases, by its layout: what `__slots__` holds may be used up, or mangled."""
    places = [name for name in ("__dict__", "__weakref__") if isinstance(vars(kind).get(name), types.GetSetDescriptorType)]
    return [slot.__name__ for owner, slot in slots_of(kind) if owner is kind] + places


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _struct_variables(kind: Any) -> dict[str, Any]:
    """Return the fields of a msgspec.Struct, of which no empty one can be made, as its class statement has them."""
    own = vars(kind).get("__annotations__", {})
    defaults = kind.__struct_defaults__
    fields = kind.__struct_fields__[len(kind.__struct_fields__) - len(defaults) :]
    return {"__annotations__": own} | {name: default for name, default in zip(fields, defaults, strict=True) if name in own}


# ---- making ------------------------------------------------------------------------------------------------------------------------


def maker_of(kind: Any, is_users: IsUsers, keywords: dict[str, Any]) -> Any:
    """Return what makes an empty class like this one, called as its metaclass is: that itself, where nothing of the user's would run."""
    meta = type(kind)
    if not is_users(meta) and not goes_by_reference(meta):
        return MakerLike(next(base for base in kind.__mro__[1:] if type(base) is meta and goes_by_reference(base)))
    librarys = next(each for each in meta.__mro__ if not is_users(each))
    starters = [base for base in kind.__mro__[1:] if "__init_subclass__" in vars(base)]
    users = starters[0] if is_users(starters[0]) else None
    if librarys is meta and users is None and not keywords and _full_name(meta) not in _TYPED_DICTS:
        return meta
    return ClassMaker(meta, librarys, users, next(base for base in starters if not is_users(base)), keywords)


class MakerLike:
    """Makes a class as its base was made, whose metaclass has no name to be found by: that of ctypes.Structure."""

    def __init__(self, base: type) -> None:
        self.base = base

    def __call__(self, *arguments: Any) -> type:
        made: type = type(self.base)(*arguments)
        return made


class ClassMaker:
    """Makes a class as a library's metaclass does.

    Args:
        meta: the metaclass of the class.
        librarys: the one that makes it: `meta`, or the first below it that is not the user's.
        users: the base whose `__init_subclass__` must not run: it has done what it does, and may want arguments. None when there is none.
        starter: the base whose `__init_subclass__` runs in its place.
        keywords: for the metaclass.
    """

    def __init__(self, meta: Any, librarys: Any, users: type | None, starter: Any, keywords: dict[str, Any]) -> None:
        self.meta = meta
        self.librarys = librarys
        self.users = users
        self.starter = starter
        self.keywords = keywords

    def __call__(self, name: str, bases: tuple[type, ...], variables: dict[str, Any]) -> type:
        """Make the class; `types.new_class` calls this in place of the metaclass."""
        with self.without_users_init_subclass():
            if _full_name(self.meta) in _TYPED_DICTS:
                made: type = type.__new__(self.meta, name, bases, variables)
            elif self.librarys is self.meta:
                made = self.meta(name, bases, variables, **self.keywords)
            else:
                made = self.librarys.__new__(self.meta, name, bases, variables, **self.keywords)
            return made

    def __reduce__(self) -> Reduced:
        return type(self), (self.meta, self.librarys, self.users, self.starter, self.keywords)

    @contextlib.contextmanager
    def without_users_init_subclass(self) -> Iterator[None]:
        """Keep the user's `__init_subclass__` from running meanwhile."""
        # A base that is not yet filled, because it refers to this class, has none.
        method = None if self.users is None else vars(self.users).get("__init_subclass__")
        if method is None:
            yield
            return
        starter = vars(self.starter)["__init_subclass__"]
        type.__setattr__(self.users, "__init_subclass__", classmethod(lambda kind, **_: starter.__get__(None, kind)()))
        try:
            yield
        finally:
            type.__setattr__(self.users, "__init_subclass__", method)
