"""What a value is pickled as, whoever pickles it: a payload, a result, or multiprocessing in a rank. The one table of all that is ours."""

from __future__ import annotations

import copyreg
import enum
import functools
import pickle
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import cloudpickle

from ice_notebook.host.installed import is_library
from ice_notebook.values import classes, enums, functions, librarys_objects, mapped_arrays, objects
from ice_notebook.values.functions import ShownAs
from ice_notebook.values.names_in_text import names_in_annotations
from ice_notebook.values.objects import PROTOCOL
from ice_notebook.values.references import goes_by_reference
from ice_notebook.values.refusals import CannotTravel, by_name_alone

Way = Callable[[Any], Any]


class ValuePickler(cloudpickle.Pickler):
    """cloudpickle's pickler, with forms of ours for what it does not carry, or not as it is.

    Args:
        file: what it writes to.
        shown_as: by which file name code is to be known where it is loaded.
        maps_files: whether arrays on a mapped file travel as the name of that file.
        has_same_main: whether `__main__` there holds what it holds here, and an object may be known by its name in it.
        options: for cloudpickle.
    """

    def __init__(
        self, file: Any, *, shown_as: ShownAs = str, maps_files: bool = True, has_same_main: bool = False, **options: Any
    ) -> None:
        super().__init__(file, **options)
        self.modules: dict[str, None] = {}  # those that whoever loads it must import
        self.last: object = None  # what is being reduced: when pickling fails, the object that it failed at
        self._shown_as = shown_as
        self._maps_files = maps_files
        self._has_same_main = has_same_main
        self._ways: dict[type, Way | None] = {}
        self._are_users: dict[type, bool] = {}
        self._bare_objects: dict[int, tuple[str, str]] | None = None

    def reducer_override(self, value: Any) -> Any:
        self.last = value
        kind = type(value)
        try:
            way = self._ways[kind]
        except KeyError:
            way = self._ways[kind] = self.way_of(kind)
        return NotImplemented if way is None else way(value)

    def way_of(self, kind: type) -> Way | None:
        """Return how the objects of a class are reduced; None leaves them to Python. Asked once for each class."""
        common = self.way_of_common(kind)
        if common is not None:
            return common
        if str(kind.__module__).startswith("ice_notebook."):
            return None  # of ours, a few in every payload: Python does it
        known = librarys_objects.reducer_of(kind)
        if known is not None:
            return functools.partial(self._reduce_known, known)
        if _is_array(kind):
            return functools.partial(self._reduce_array, kind)
        better = None if issubclass(kind, enum.Enum) else objects.reduction_of(kind, self.is_users)
        if better is not None:
            return better
        if kind in self.dispatch_table or not objects.is_left_to_python(kind):
            return self._reduce_as_it_says
        if not self.is_users(kind) and _is_own_copy(kind):
            return self._reduce_single
        if kind.__module__ != "__main__" or self._has_same_main:
            names = _objects_named(kind)
            return functools.partial(_reduce_named, names) if names else None
        return None

    def way_of_common(self, kind: type) -> Way | None:
        """Return the same for what there is in every pickle: functions, code, classes and modules."""
        own = _WAYS.get(kind)
        if own is None and issubclass(kind, (type, types.ModuleType)):
            own = "_reduce_class" if issubclass(kind, type) else "_reduce_module"
        return None if own is None else getattr(self, own)

    def is_users(self, kind: type) -> bool:
        """Return whether a class is the user's, written in Python, and not a library's."""
        found = self._are_users.get(kind)
        if found is None:
            name = str(kind.__module__)
            module = sys.modules.get(name) or sys.modules.get(name.partition(".")[0])
            file = str(getattr(module, "__file__", None) or "")
            in_file = file.endswith((".py", ".pyc")) and not is_library(file)
            found = self._are_users[kind] = name == "__main__" or module is None or in_file
        return found

    def note_arrival(self, value: Any, name: str) -> None:
        """Hear that something of the user's, which has a name, goes by value."""

    def note_mentioned(self, kind: type, names: Iterable[str]) -> None:
        """Hear of names that a class of the user's mentions where no code shows it."""

    # ---- ways

    def _reduce_class(self, kind: type) -> Any:
        with classes.readable_slots(kind):
            reduced = super().reducer_override(kind)
        if reduced is NotImplemented:
            self._note_module(kind)
        if not isinstance(reduced, tuple) or len(reduced) != 6:
            return reduced
        self.note_arrival(kind, kind.__name__)
        self.note_mentioned(kind, names_in_annotations(vars(kind).get("__annotations__", {})))
        reduce = enums.reduce_enum if issubclass(kind, enum.Enum) else classes.reduce_class
        return reduce(kind, reduced, self.is_users)

    def _reduce_function(self, function: Any) -> Any:
        if librarys_objects.is_ipythons_open(function):
            return librarys_objects.found_there, ("open",)
        reduced = functions.reduce_wrapper(function)
        if reduced is None or self._is_found_by_name(function):
            reduced = super().reducer_override(function)
            if reduced is NotImplemented:
                self._note_module(function)
                return reduced
            functions.complete(function, reduced)
        self.note_arrival(function, function.__name__)
        return reduced

    def _reduce_code(self, code: types.CodeType) -> Any:
        return functions.reduce_code(code, self._shown_as) or NotImplemented

    def _reduce_method(self, method: types.MethodType) -> Any:
        return (librarys_objects.found_there, ("get_ipython",)) if librarys_objects.is_of_shell(method) else NotImplemented

    def _reduce_module(self, module: types.ModuleType) -> Any:
        self.modules[module.__name__] = None
        return NotImplemented

    def _reduce_bare(self, value: object) -> Any:
        """Reduce an `object()`, which some module may have by a name as its mark of "nothing was given"."""
        if self._bare_objects is None:
            self._bare_objects = _bare_objects(with_main=self._has_same_main)
        found = self._bare_objects.get(id(value))
        if found is None:
            return NotImplemented
        self.modules[found[0]] = None
        return librarys_objects.named, found

    def _reduce_single(self, value: Any) -> Any:
        """Reduce a library's object that is its own copy, such as a mark of "nothing was given", to the name that the library has for it."""
        package = type(value).__module__.partition(".")[0]
        for module_name, module in list(sys.modules.items()):
            if isinstance(module, types.ModuleType) and module_name.partition(".")[0] == package:
                name = next((name for name, each in list(vars(module).items()) if each is value), None)
                if name is not None:
                    self.modules[module_name] = None
                    return librarys_objects.find_named, (module_name, name)
        return NotImplemented

    def _reduce_known(self, reducer: Way, value: Any) -> Any:
        name = getattr(value, "__name__", None)
        if type(value).__name__ in librarys_objects.HAVE_NAMES and isinstance(name, str):
            if self._is_found_by_name(value):
                self._note_module(value)
                return NotImplemented
            self.note_arrival(value, name)
        return reducer(value)

    def _reduce_array(self, kind: type, value: Any) -> Any:
        reduced = mapped_arrays.reduce_array(value) if self._maps_files else None
        if reduced is None and kind.__name__ == "memmap":
            return mapped_arrays.reduce_copied(value)
        return reduced or value.__reduce_ex__(PROTOCOL)

    def _reduce_as_it_says(self, value: Any) -> Any:
        """Reduce an object by what its class, or whoever has registered it, says. A name is one that is there where it is loaded."""
        kind = type(value)
        registered = self.dispatch_table.get(kind)
        reduced = value.__reduce_ex__(PROTOCOL) if registered is None else registered(value)
        if isinstance(reduced, str):
            return self._reduce_to_name(value, reduced)
        if not self.is_users(kind) and kind is not types.BuiltinFunctionType:
            self._ways[kind] = None  # a library's class that does not say a name once never does
        return reduced

    def _reduce_to_name(self, value: Any, name: str) -> Any:
        module = getattr(value, "__module__", None) or pickle.whichmodule(value, name)  # type: ignore[attr-defined]
        is_there = librarys_objects.find_named(module, name) is value
        if is_there and (module != "__main__" or self._has_same_main):
            self.modules[module] = None
            return name
        if self.is_users(type(value)):
            self.note_arrival(value, name)
            return objects.reduce_plainly(value, self.is_users)
        raise CannotTravel(value, by_name_alone(module, name))

    # ---- what the ways ask

    def _note_module(self, value: Any) -> None:
        module = getattr(value, "__module__", None)
        if isinstance(module, str):
            self.modules[module] = None

    def _is_found_by_name(self, value: Any) -> bool:
        return goes_by_reference(value, tuple(cloudpickle.list_registry_pickle_by_value()))


_WAYS = {
    types.FunctionType: "_reduce_function",
    types.CodeType: "_reduce_code",
    types.MethodType: "_reduce_method",
    object: "_reduce_bare",
}


_RETURNS_ITSELF = (lambda self, memo: self).__code__.co_code  # noqa: ARG005 - it is the form that counts


def _is_own_copy(kind: type) -> bool:
    """Return whether the copy of an object is the object, as its class has it written."""
    copier = vars(kind).get("__deepcopy__")
    return isinstance(copier, types.FunctionType) and copier.__code__.co_code == _RETURNS_ITSELF


def _is_array(kind: type) -> bool:
    numpy = sys.modules.get("numpy")
    return kind in {getattr(numpy, "ndarray", None), getattr(numpy, "memmap", None)} and kind not in copyreg.dispatch_table


def _objects_named(kind: type) -> dict[int, str]:
    """Return the objects of a class that the module of the class has by a name, by their id: marks such as `dataclasses.MISSING`."""
    variables = vars(sys.modules.get(str(kind.__module__), types))
    return {id(value): name for name, value in list(variables.items()) if type(value) is kind}


def _reduce_named(names: dict[int, str], value: Any) -> Any:
    """Reduce a mark to its name. What holds something is no mark: it travels as it is here."""
    name = None if getattr(value, "__dict__", None) else names.get(id(value))
    return NotImplemented if name is None else name


def _bare_objects(*, with_main: bool) -> dict[int, tuple[str, str]]:
    found = {}
    for module_name, module in list(sys.modules.items()):
        if isinstance(module, types.ModuleType) and (with_main or module_name != "__main__"):
            found.update({id(value): (module_name, name) for name, value in list(vars(module).items()) if type(value) is object})
    return found
