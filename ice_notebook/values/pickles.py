"""Values in one file: cloudpickle with its buffers beside the stream, mapped by the reader; used in the kernel and in ranks.

`value_files` owns the file, `tensors` what of a tensor's memory goes into it, `refusals` the words for what cannot.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cloudpickle

from ice_notebook.errors import IceNotebookError, OptionError, PayloadError, ResultError
from ice_notebook.host.ownership import ForeignFileError, open_own
from ice_notebook.host.unknown_forms import note_unknown_form
from ice_notebook.values import local_modules
from ice_notebook.values.functions import ShownAs, load_code
from ice_notebook.values.reducers import ValuePickler, Way
from ice_notebook.values.refusals import CannotTravel, Kind, explain_refusal, kind_of_class
from ice_notebook.values.tensors import DeviceTensors, Dumper, Loader, Segment, load_storage
from ice_notebook.values.value_files import PIECE_BYTES, Layout, map_privately, read_layout, write_file, write_first_file

__all__ = ["DeviceTensors", "Prepared", "Written", "dump", "load", "prepare"]

IN_BAND_BYTES = 1024  # a smaller buffer goes into the stream: it is copied, and keeps no mapping alive


@dataclass(frozen=True)
class Written:
    """A value that was written: the size of its file, and the source files of the functions and classes pickled by value in it."""

    size_bytes: int
    source_files: frozenset[str]


def dump(value: object, path: str | os.PathLike[str], **options: Any) -> Written:
    """Write a value into one file; see `prepare`, whose options it takes, and `Prepared.write`."""
    prepared = prepare(value, **options)
    prepared.write(path)
    return Written(prepared.size_bytes, prepared.source_files)


def prepare(
    value: object,
    *,
    devices: DeviceTensors,
    by_value: Sequence[str] = (),
    main_globals: dict[str, Any] | None = None,
    names: Mapping[str, object] | None = None,
    shown_as: ShownAs = str,
    maps_files: bool = False,
    is_interrupted: Callable[[], bool] = lambda: True,
) -> Prepared:
    """Return a value pickled and ready to be written, its large buffers not copied: it is written as it is at the time of writing.

    Args:
        value: what to pickle.
        devices: what becomes of tensors that are not on the CPU.
        by_value: packages and modules whose functions and classes are shipped as they are here, not imported there.
        main_globals: the notebook's variables: functions that have them as their globals have those of `__main__` where they are
            loaded, and what is pickled of them by value is found there under its name. None for a value on its way back to a notebook:
            what `__main__` has a name for, the notebook has by that name.
        names: parts of the value by the names to use in an error's sentence, in the order to search them; else `value` is its name.
        shown_as: by which file name code is to be known where it is loaded.
        maps_files: whether an array on a mapped file travels as the name of that file.
        is_interrupted: whether a KeyboardInterrupt is what its name says, and not something that the value itself raises.

    Raises:
        PayloadError: something in it cannot be pickled; its `refusal` says what, where, and what to do.
        OptionError: a module of `by_value` cannot be imported.
    """
    options = {"shown_as": shown_as, "maps_files": maps_files, "has_same_main": main_globals is None}

    def pickled(by_value: Sequence[str]) -> _Pickler:
        pickler = _Pickler(devices, main_globals, **options)
        try:
            with _shipped_by_value(by_value):
                pickler.dump((value, pickler.main_names))
        except (IceNotebookError, MemoryError):
            raise
        except BaseException as error:  # of the value's own code, SystemExit too
            if isinstance(error, KeyboardInterrupt) and is_interrupted():
                raise
            refusal = explain_refusal(error, pickler.last, names=names or {"value": value}, by_value=by_value)
            raise PayloadError.holds(refusal) from (None if isinstance(error, CannotTravel) else error)
        pickler.check()
        return pickler

    done = pickled(by_value)
    lost = local_modules.lost_among(done.modules if main_globals is not None else ())
    if lost.made_by_hand:
        done = pickled((*by_value, *lost.made_by_hand))
    stream = [pickle.dumps(lost.places), *done.stream.parts]
    return Prepared(stream, done.buffers, done.storages.segments(), frozenset(done.source_files))


def load(path: str | os.PathLike[str], *, device: str | None = None, file_names: Mapping[str, str] | None = None) -> Any:
    """Return the value of a file: its large parts are mapped, and read when they are touched.

    Args:
        path: a file that `dump` or `Prepared` wrote; it may be unlinked afterwards.
        device: where tensors arrive that were on another device than the CPU with `DeviceTensors.TO_ASSIGNED`; None keeps them on the
            CPU.
        file_names: by which file name code is to be known here, by the name that it has in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ResultError: the file is not a whole one of ours, or somebody else's.
    """
    with _open_value(path) as file:
        buffers, storages = _read_around(file, path, device)
        return _Unpickler(file, buffers, storages, file_names or {}).load()[0]


def name_of_unloaded(path: str | os.PathLike[str], *, device: str | None = None) -> str | None:
    """Return the variable of the user's at which `load` fails, None when it is not known."""
    from ice_notebook.values import unloaded  # noqa: PLC0415 - when something has gone wrong

    with _open_value(path) as file:
        buffers, storages = _read_around(file, path, device)
        return unloaded.name_of_unloaded(file, buffers, _Unpickler(file, (), storages, {}).find_class)


def _open_value(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        return open(open_own(path), "rb")
    except ForeignFileError as error:
        raise ResultError.foreign(path, error.strerror or "") from None


def _read_around(file: BinaryIO, path: str | os.PathLike[str], device: str | None) -> tuple[Iterator[memoryview], Loader]:
    """Bring the modules that a value needs, and return its buffers and storages; the file is then at its pickle."""
    layout = read_layout(file, path)
    memory = map_privately(file, layout.starts[-1])
    inner, outer = layout.starts[: len(layout.buffer_sizes)], layout.starts[len(layout.buffer_sizes) : -1]
    buffers = (memory[start : start + size] for start, size in zip(inner, layout.buffer_sizes, strict=True))
    file.seek(layout.starts[-1])
    local_modules.bring(pickle.load(file))
    return buffers, Loader(memory, layout.segments, outer, device)


class Prepared:
    """A pickled value that knows its size, with its buffers where they were."""

    def __init__(
        self,
        stream: Sequence[bytes | bytearray],
        buffers: Sequence[memoryview],
        segments: Sequence[Segment],
        source_files: frozenset[str],
    ) -> None:
        self.source_files = source_files
        self._stream = stream
        self._buffers = buffers
        self._segments = segments
        sizes = tuple(buffer.nbytes for buffer in buffers)
        self._layout = Layout(sizes, tuple(segment.row for segment in segments), sum(map(len, stream)))

    @property
    def size_bytes(self) -> int:
        """Return the size that the file will have."""
        return self._layout.size_bytes

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the file and return its path: whole, readable by its owner alone, in place of an older one.

        Raises:
            OSError: it could not be written, ENOSPC when there is no room. Nothing is left behind then.
        """
        write_file(path, self._layout, self._parts)
        return Path(path)

    def write_first(self, paths: Sequence[str | os.PathLike[str]]) -> Path:
        """Write the file to the first of the paths that has room for it, and return that path.

        All but the last are taken to be on shared memory, of which a share is left free. One that cannot be written is passed over.

        Raises:
            OSError: the last path's error, ENOSPC when there is no room. Nothing is left behind then.
        """
        return write_first_file(paths, self._layout, self._parts)

    def _parts(self) -> Iterator[Iterable[memoryview]]:
        yield from ((buffer,) for buffer in self._buffers)
        yield from (segment.pieces(PIECE_BYTES) for segment in self._segments)
        yield map(memoryview, self._stream)


# ---- pickling ----------------------------------------------------------------------------------------------------------------------


class _Stream:
    """What the pickler writes to: keeps its pieces as they come, so that a large `bytes` is not copied."""

    def __init__(self) -> None:
        self.parts: list[bytes | bytearray] = []

    def write(self, data: Any) -> int:
        self.parts.append(data if isinstance(data, (bytes, bytearray)) else bytes(data))
        return len(data)


class _MainGlobals(dict[str, Any]):
    """Stands for the notebook's variables in a stream: loaded, it is the variables of `__main__` there."""

    is_pickled = False

    def __reduce__(self) -> tuple[Any, ...]:
        self.is_pickled = True
        return _main_globals, ()


class _MainNames:
    """The notebook's own functions and classes that were pickled by value, bound in `__main__` again when they are loaded.

    Without that, what pickles them by reference there, as a DataLoader worker does with an item, would not find them.
    """

    def __init__(self, main_globals: dict[str, Any] | None) -> None:
        self.main_globals = main_globals or {}
        self.found: dict[str, Any] = {}
        self._n_pickled = 0

    def add(self, value: Any, name: str) -> None:
        if self.main_globals.get(name) is value:
            self.found[name] = value

    def mention(self, names: Iterable[str]) -> None:
        """Have what these names mean in the notebook bound as well."""
        for name in names:
            if name in self.main_globals:
                self.found.setdefault(name, self.main_globals[name])

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled last, and asked only then: by now all names are known, but for those that what is mentioned brings along.
        new = dict(list(self.found.items())[self._n_pickled :])
        self._n_pickled = len(self.found)
        return _bind_in_main, ((new, _Rest(self)) if new else ())


class _Rest:
    """Stands for the names that are found while those before are pickled."""

    def __init__(self, names: _MainNames) -> None:
        self._names = names

    def __reduce__(self) -> tuple[Any, ...]:
        return self._names.__reduce__()


def _main_globals() -> dict[str, Any]:
    return vars(sys.modules["__main__"])


def _bind_in_main(found: Mapping[str, Any] | None = None, _: None = None) -> None:
    if found:
        _main_globals().update(found)


class _Pickler(ValuePickler):
    def __init__(self, devices: DeviceTensors, main_globals: dict[str, Any] | None, **options: Any) -> None:
        self.stream = _Stream()
        self.buffers: list[memoryview] = []
        super().__init__(self.stream, protocol=5, buffer_callback=self._keep_buffer, **options)
        self.storages = Dumper(devices, carries_hooks=main_globals is not None)
        self.main_names = _MainNames(main_globals)
        self.source_files: set[str] = set()
        self._main_globals = main_globals
        self._stand_in = _MainGlobals()
        self._has_functions_of_main = False
        if main_globals is not None:
            _use_main_globals(self, main_globals, self._stand_in)

    def _keep_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes <= IN_BAND_BYTES:
            return True
        self.buffers.append(raw)
        return False

    def way_of(self, kind: type) -> Way | None:
        way = self.way_of_common(kind)
        if way is not None:
            return way
        refused = kind_of_class(kind)
        if refused is not None:
            return lambda value: _reduce_standard_stream(value, refused)
        return self.storages.reduce if self.storages.handles(kind) else super().way_of(kind)

    def note_arrival(self, value: Any, name: str) -> None:
        self.main_names.add(value, name)
        if isinstance(value, types.FunctionType) and value.__globals__ is self._main_globals:
            self._has_functions_of_main = True

    def note_mentioned(self, kind: type, names: Iterable[str]) -> None:
        if kind.__module__ == "__main__":
            self.main_names.mention(names)

    def check(self) -> None:
        """Say so when functions of the notebook will have variables of their own, and not those of `__main__`."""
        if self._has_functions_of_main and not self._stand_in.is_pickled:
            note_unknown_form("cloudpickle", "the globals of functions", "What one of them assigns, the others may not see.")

    def _reduce_code(self, code: types.CodeType) -> Any:
        # Every function that goes by value comes by here, also those in a class.
        self.source_files.add(code.co_filename)
        return super()._reduce_code(code)


def _reduce_standard_stream(value: object, kind: Kind) -> tuple[Any, ...]:
    for name in ("stdout", "stderr"):
        if value is getattr(sys, name) or value is getattr(sys, f"__{name}__"):
            return getattr, (sys, name)
    raise CannotTravel(value, kind)


# What values of version 0.1 name by where it was then. Runs that were kept must go on giving them.
_MOVED = {
    f"ice_notebook.{module}": f"ice_notebook.values.{module}"
    for module in (
        "classes",
        "enums",
        "functions",
        "librarys_objects",
        "local_modules",
        "mapped_arrays",
        "objects",
        "pickles",
        "reducers",
        "tensors",
    )
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, buffers: Iterable[memoryview], storages: Loader, file_names: Mapping[str, str]) -> None:
        super().__init__(file, buffers=buffers)
        self._storages = storages
        self._file_names = file_names

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(_MOVED.get(module, module), name)
        if found is load_storage:
            return self._storages.storage
        if found is load_code and self._file_names:
            return lambda data: load_code(data, lambda name: self._file_names.get(name, name))
        return found


def _use_main_globals(pickler: Any, main_globals: dict[str, Any], stand_in: _MainGlobals) -> None:
    """Let functions that have the notebook's variables as their globals have those of `__main__` where they are loaded.

    `globals_ref` is cloudpickle's own record of the globals it has met, by their id, each with what to pickle in their place (3.0 to
    3.1). Without it they would have a dictionary of their own, with what they refer to in it: only what they assign is not seen then.
    """
    record = getattr(pickler, "globals_ref", None)
    if isinstance(record, dict):
        record[id(main_globals)] = stand_in


# cloudpickle's register is one for the process: while one pickles with a module in it, another must not take the module out again.
_REGISTER_LOCK = threading.RLock()


@contextlib.contextmanager
def _shipped_by_value(names: Sequence[str]) -> Iterator[None]:
    if not names:
        yield
        return
    modules = [_import(name) for name in names]
    with _REGISTER_LOCK, contextlib.ExitStack() as undo:
        for module in modules:
            if module.__name__ not in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.register_pickle_by_value(module)
                undo.callback(cloudpickle.unregister_pickle_by_value, module)
        yield


def _import(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise OptionError.not_a_module("by_value", name, error) from None
