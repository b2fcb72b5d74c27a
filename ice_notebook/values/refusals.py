"""What may not travel between processes, why, and where in a value it was found.

The pickler says which object stopped it; this module says what that is in words, under which name the user knows it, which line uses
it, and what to do instead.
"""

from __future__ import annotations

import copyreg
import linecache
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ice_notebook.errors import Refusal, describe_error
from ice_notebook.host.installed import is_library
from ice_notebook.values.descriptions import type_name, without_addresses
from ice_notebook.values.references import Path, find, line_of

DEEP = 100  # levels of nesting that a value with a recursion error has at least
REASON_CHARACTERS = 300


@dataclass(frozen=True)
class Kind:
    """A kind of object that cannot be sent: what it is in words, and the way out for a value sent to the ranks and for a result."""

    what: str
    advice: str
    result_advice: str = "Leave it out of the value that is returned."


class CannotTravel(TypeError):
    """Stops the pickler at an object that is known not to travel; `explain_refusal` makes the user's sentence of it."""

    def __init__(self, culprit: object, kind: Kind) -> None:
        super().__init__(kind.what)
        self.culprit = culprit
        self.kind = kind


_FILE = Kind("an open file", "Open it in the function.", "Return what it holds, or its path.")
_LOCK = Kind("a lock", "Create it in the function.")
_EVENT = Kind("something that threads wait for", "Create it in the function.")
_QUEUE = Kind("a queue between threads", "Send a list of its items, or create it in the function.", "Return a list of its items.")
_PROCESSES = Kind("shared between a process and its own children", "Create it in the function.")
_COROUTINE = Kind(
    "a coroutine that is not finished", "Await it first, or call its function in the launched one.", "Return what it gives."
)
_FUTURE = Kind("the promise of a value", "Wait for its value and send that.", "Return its value.")
_SOCKET = Kind("an open connection", "Connect in the function.")
_CALL = Kind("part of a running call", "Send the text that `traceback.format_exc()` gives.", "Return the text of the traceback.")
_DATABASE = Kind("an open database", "Connect in the function.")
_GROUP = Kind("a process group of this process", "Use the one of the rank, which `torch.distributed` has there.")
_WRAPPED = Kind(
    "a model that is wrapped for the process group of its ranks",
    "Send the model itself, and wrap it in the function.",
    "Return `model.module`, or its `state_dict()`.",
)
_SHARDED = Kind(
    "a model whose parameters are spread over its ranks",
    "Send the model itself, and wrap it in the function.",
    "Return its state: `torch.distributed.checkpoint.state_dict.get_model_state_dict` gives a full one.",
)
OPERATOR = Kind(
    "an operator that is registered with torch in this process",
    "Define it in the function, or in a module that the function imports.",
    "Return what it gives.",
)
_PARAMETRIZED = Kind(
    "a module with parametrizations, which torch does not pickle",
    "Send its `state_dict()`, or make the module in the function.",
    "Return its `state_dict()`.",
)
_STREAM = Kind("part of this process's GPU context", "Create it in the function.")
_GENERATOR = Kind(
    "a generator, which can only go on where it began",
    "Send a list of its values, or call the function that makes it in the launched one.",
    "Return a list of its values.",
)

# By the full name of the class, so that nothing is imported to recognise its objects. A class that says itself how it is pickled is
# not stopped by what one of its bases is.
_KINDS: dict[str, Kind] = {
    "_io.FileIO": _FILE,
    "_io.BufferedReader": _FILE,
    "_io.BufferedWriter": _FILE,
    "_io.BufferedRandom": _FILE,
    "_io.BufferedRWPair": _FILE,
    "_io.TextIOWrapper": _FILE,
    "mmap.mmap": Kind("a mapped file", "Map it in the function.", "Return what it holds."),
    "_thread.lock": _LOCK,
    "_thread.RLock": _LOCK,
    "threading._RLock": _LOCK,
    "threading.Condition": _EVENT,
    "threading.Semaphore": _EVENT,
    "threading.Event": _EVENT,
    "threading.Barrier": _EVENT,
    "threading.Thread": Kind("a thread", "Start it in the function."),
    "_thread._local": Kind("a store of values of each thread", "Create it in the function."),
    "queue.Queue": _QUEUE,
    "_queue.SimpleQueue": _QUEUE,
    "multiprocessing.queues.Queue": _PROCESSES,
    "multiprocessing.queues.SimpleQueue": _PROCESSES,
    "multiprocessing.synchronize.SemLock": _PROCESSES,
    "multiprocessing.process.BaseProcess": Kind("a process", "Start it in the function."),
    "multiprocessing.connection._ConnectionBase": _SOCKET,
    "subprocess.Popen": Kind("a process", "Start it in the function.", "Return its output."),
    "builtins.generator": _GENERATOR,
    "builtins.coroutine": _COROUTINE,
    "builtins.async_generator": _GENERATOR,
    "builtins.frame": _CALL,
    "builtins.traceback": _CALL,
    "socket.socket": _SOCKET,
    "_socket.socket": _SOCKET,
    "select.epoll": _SOCKET,
    "concurrent.futures._base.Executor": Kind("a pool of workers", "Create it in the function."),
    "concurrent.futures._base.Future": _FUTURE,
    "_asyncio.Future": _FUTURE,
    "asyncio.events.AbstractEventLoop": Kind("an event loop", "Use the one that runs in the function."),
    "sqlite3.Connection": _DATABASE,
    "sqlite3.Cursor": _DATABASE,
    "weakref.ReferenceType": Kind("a weak reference", "Send the object itself.", "Return the object itself."),
    "_contextvars.ContextVar": Kind("a context variable", "Send its value, `.get()`.", "Return its value, `.get()`."),
    "torch.distributed.distributed_c10d.ProcessGroup": _GROUP,
    "torch.distributed.distributed_c10d.Store": _GROUP,
    "torch.distributed.device_mesh.DeviceMesh": _GROUP,
    "torch.nn.parallel.distributed.DistributedDataParallel": _WRAPPED,
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": _SHARDED,
    "torch.distributed.fsdp.FSDPModule": _SHARDED,
    "torch.distributed.tensor.DTensor": Kind(
        "a tensor that is spread over its ranks",
        "Send the whole tensor, `.full_tensor()`.",
        "Return `.full_tensor()` or `.to_local()` of it.",
    ),
    "torch.distributed.distributed_c10d.Work": Kind(
        "an operation that is not finished", "Wait for it.", "Wait for it, and return its tensor."
    ),
    "torch.library.Library": OPERATOR,
    "torch._library.custom_ops.CustomOpDef": OPERATOR,
    "torch.cuda.streams.Stream": _STREAM,
    "torch.cuda.streams.Event": _STREAM,
    "torch.utils.data.dataloader._BaseDataLoaderIter": Kind(
        "an iterator over a running DataLoader", "Send the DataLoader, and iterate in the function.", "Return the DataLoader."
    ),
    "IPython.core.interactiveshell.InteractiveShell": Kind(
        "the notebook's own shell, which the ranks do not have", "Call it in a cell of its own, and send what it gives."
    ),
    "ipykernel.iostream.OutStream": _FILE,
    "ipywidgets.widgets.widget.Widget": Kind("a widget of this page", "Send its value, `.value`."),
}
_PICKLE_METHODS = ("__reduce_ex__", "__reduce__", "__getstate__")


def kind_of_class(kind: type) -> Kind | None:
    """Return what the objects of a class are when they are known not to travel.

    A class of ours whose objects are handles says so by a class attribute `_ice_refused`, a noun phrase.
    """
    ours = getattr(kind, "_ice_refused", None)
    if isinstance(ours, str):
        return Kind(
            ours, "Send the values that the function needs of it instead.", "Return the values that are needed of it instead."
        )
    if kind in copyreg.dispatch_table:
        return None
    if kind.__module__ == "torch.nn.utils.parametrize" and kind.__name__.startswith("Parametrized"):
        return _PARAMETRIZED  # of a class that torch has made for this one module
    for base in kind.__mro__:
        known = _KINDS.get(f"{base.__module__}.{base.__qualname__}")
        if known is not None:
            return known
        if base is object or any(method in vars(base) for method in _PICKLE_METHODS):
            return None
    return None


def device_kind(device: object) -> Kind:
    """Return the refusal of a tensor on a device, for ranks that have none."""
    return Kind(
        f"a tensor on {device}, and the ranks are CPU ranks", "Send its copy on the CPU, `.cpu()`, or launch with `devices=cuda`."
    )


def by_name_alone(module: str, name: str) -> Kind:
    """Return the refusal of what is pickled as a name, where no module of the ranks has it by that name."""
    return Kind(
        f"an object that is known by a name, `{name}` of {module!r}, which the ranks do not have", "Create it in the function."
    )


def explain_refusal(error: BaseException, culprit: object, *, names: Mapping[str, object], by_value: Sequence[str] = ()) -> Refusal:
    """Return what stopped the pickler, where it was found and the way out.

    Args:
        error: what pickling raised.
        culprit: the object that was being pickled then; `None` when it is not known.
        names: what was pickled, by the names the user knows it under; they are searched in this order.
        by_value: modules whose functions and classes are pickled by value.
    """
    if isinstance(error, CannotTravel):
        kind, culprit = error.kind, error.culprit
    elif _is_recursion(error):
        path = _find(names, lambda _, depth: depth >= DEEP, by_value)
        kind = Kind("nested too deeply to be pickled", "Send a flatter structure.", "Return a flatter structure.")
        return _refusal_at(path.head if path else None, names, kind)
    else:
        kind = _kind_from_error(error, culprit)
    path = None if culprit is None else _find(names, lambda value, _: value is culprit, by_value)
    return _refusal_at(path, names, kind)


def _find(names: Mapping[str, object], is_wanted: Callable[[object, int], bool], by_value: Sequence[str]) -> Path | None:
    try:
        return find(names, is_wanted=is_wanted, by_value=by_value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # of the code of whatever is looked at: the reason is known, where it was found is not
        return None


def _is_recursion(error: BaseException) -> bool:
    return isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)


def _kind_from_error(error: BaseException, culprit: object) -> Kind:
    reason = without_addresses(describe_error(error))[:REASON_CHARACTERS].rstrip(".")
    what = "something that cannot be pickled" if culprit is None else _with_article(type_name(culprit))
    return Kind(f"{what}, and pickling it raised {reason}", "Create it in the function, or send what it is made from.")


def _with_article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'AEIOUaeiou' else 'a'} {noun}"


def _refusal_at(path: Path | None, names: Mapping[str, object], kind: Kind) -> Refusal:
    if path is None:
        # An object that exists only while pickling, or one beyond what was searched.
        name = next(iter(names), "the value")
        return Refusal(name, kind.what, kind.advice, kind.result_advice, is_inside=True)
    # A bound method is known by its own name: nobody writes `get_ipython.__self__`.
    text = path.text.removesuffix(".__self__")
    if path.owner is not None and path.owner.text:
        # What is inside a library's object is not the user's affair: the object is.
        owner = path.owner.text
        part = "" if text == owner else f" (`{text}`)"
        found = Refusal(owner, f"{kind.what}{part}", f"Create `{owner}` in the function.", kind.result_advice, is_inside=True)
    else:
        found = Refusal(text, kind.what, kind.advice, kind.result_advice, is_inside=path.is_inside or text != path.text)
    if path.user is None or is_library(path.user.__code__.co_filename):
        return found
    line = line_of(path.user.__code__, path.variable)
    source = linecache.getline(path.user.__code__.co_filename, line).strip() if line else ""
    return replace(found, function=path.user.__qualname__.rpartition("<locals>.")[2], line=line, source=source)
