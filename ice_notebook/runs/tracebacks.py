"""Exceptions of user code as `protocol.Failure`, trimmed to the user's own frames. Runs in the ranks."""

from __future__ import annotations

import builtins
import linecache
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType, TracebackType

from ice_notebook.errors import IceNotebookError, printable
from ice_notebook.host.installed import OWN_FOLDER, is_library
from ice_notebook.values.descriptions import without_addresses
from ice_notebook.wire.protocol import HEADLINE_CHARACTERS, LINE_CHARACTERS, Excerpt, Failure, TracebackFrame

TRACEBACK_BYTES = 64 * 1024
EXCERPT_LINES = 5
# A recursion's thousand frames say no more than its ends do.
OUTER_FRAMES = 12
INNER_FRAMES = 12
CHAIN_LENGTH = 20  # causes followed, and depth of nested groups: both can be cyclic or endless

# What calls user code, and is cut where it stands outside of it. Packages by their first name.
_MACHINERY = frozenset({"ice_notebook", "cloudpickle", "pickle", "_pickle", "runpy", "importlib", "_frozen_importlib", "zipimport"})
_GROUP: type[BaseException] | tuple[()] = getattr(builtins, "BaseExceptionGroup", ())  # Python 3.11 and later

# torch.distributed.DistError and its family, by name: this module does not import torch.
_COMMUNICATION_TYPES = frozenset({"DistError", "DistBackendError", "DistNetworkError", "DistStoreError", "ConnectionError"})
# Gloo raises plain RuntimeErrors, and NCCL did before torch 2.1.
_COMMUNICATION_TEXT = re.compile(
    r"gloo[/\]]|\bgloo\b.*(?:timeout|timed out|connect)|connectFullMesh"
    r"|NCCL error|NCCL communicator was aborted|nccl(?:Remote|System|Internal|UnhandledCuda)Error|remote process exited"
    r"|Connection (?:closed|reset|refused)|Socket (?:closed|timeout)|Broken pipe|connect to remote peer|Application timeout caused pair closure"
    r"|(?:recv|send)(?:Value|Bytes|Vector|String)? failed|failed to (?:recv|send), |recvValue|recvBytes|sendBytes"
    r"|Timed out waiting|monitoredBarrier|Watchdog caught collective",
    re.IGNORECASE,
)
# These come from a collective as well, and are a rank's own mistake.
_OWN_MISTAKE = re.compile(r"EADDRINUSE|address already in use|Duplicate GPU detected|ncclInvalid(?:Usage|Argument)", re.IGNORECASE)

# What differs from run to run in a message besides object addresses: the ports of connections, the place in somebody's build of a library.
_SCRUBS = (
    (re.compile(r"(\[?(?:\d{1,3}\.){3}\d{1,3}\]?|\blocalhost|\[[0-9a-fA-F:.]*:[0-9a-fA-F:.]*\]):\d{2,5}\b"), r"\1"),
    (re.compile(r"(\((?:\d{1,3}\.){3}\d{1,3}), \d{1,5}\)"), r"\1)"),
    (re.compile(r"\bport: \d{1,5}\b"), "port: …"),
    (re.compile(r"^\[\S+\.(?:cc|cpp|h|hpp|cu):\d+\] "), ""),
)


def failure_from_exception(error: BaseException, labels: Mapping[str, str], *, at: float) -> Failure:
    """Return an exception that user code raised as a failure of its rank, `at` seconds since the epoch.

    `labels` maps the file name of a cell to what people see, `Cell In[3]`. Frames are the user's, cells and local modules, and the
    library frames behind the last of them; those of ice_notebook and of what unpickles and runs code stay out. Sources come from
    `linecache`. Nothing an exception does while it is looked at, such as raising in its `__str__`, gets out of here.
    """
    name = _text(type(error).__name__, LINE_CHARACTERS)
    try:
        places = _places(error, labels)
        return Failure(
            kind="raised",
            headline=_headline(error, labels),
            type_name=name,
            frames=tuple(place.frame for place in _bounded(places)),
            excerpt=_excerpt(places, of_last=isinstance(error, SyntaxError)),
            traceback=_full_traceback(error, labels),
            is_communication=is_communication(error),
            at=at,
        )
    except BaseException as problem:  # user classes and loaders run in here, and a rank must always be able to say that it failed
        text = f"{name} (it cannot be described: {type(problem).__name__} came up)"
        return Failure(kind="raised", headline=text, type_name=name, traceback=text, at=at)


def users_traceback(error: BaseException) -> TracebackType | None:
    """Return the traceback of an exception without the frames that called the user's code; None where nothing else is in it."""
    return _skip_machinery(error.__traceback__)


def has_users_frames(error: BaseException) -> bool:
    """Return whether an exception came up in the user's code, or in what that called."""
    return any(not is_library(frame.f_code.co_filename) for frame, _ in _walk(error.__traceback__))


def cut_handler(error: BaseException) -> None:
    """Take our own innermost frames out of a traceback: those of the signal handler that has raised where the user's code stood."""
    last: TracebackType | None = None
    tb = error.__traceback__
    while tb is not None:
        if not tb.tb_frame.f_code.co_filename.startswith(OWN_FOLDER):
            last = tb
        tb = tb.tb_next
    if last is not None:
        last.tb_next = None


def is_communication(error: BaseException) -> bool:
    """Return whether an exception is a broken or overdue connection to another rank: usually the echo of that rank's failure.

    What was raised `from` such an exception is one as well; what merely came up while one was handled is not.
    """
    for _ in range(CHAIN_LENGTH):
        if _is_broken_connection(error):
            return True
        if error.__cause__ is None:
            return False
        error = error.__cause__
    return False


def cut_middle(text: str, limit_bytes: int) -> str:
    """Return a text of at most so many bytes of UTF-8: its beginning and its end, with the number of characters left out between."""
    raw = text.encode()
    if len(raw) <= limit_bytes:
        return text
    half = max(0, (limit_bytes - 64) // 2)  # 64: room for the sentence
    head, tail = raw[:half].decode(errors="ignore"), raw[len(raw) - half :].decode(errors="ignore")
    return f"{head}\n… {len(text) - len(head) - len(tail)} characters not shown …\n{tail}"


# ---- frames -------------------------------------------------------------------------------------------------------------------------


class _Place:
    """A frame with the file that it stands in, for the excerpt."""

    def __init__(self, frame: TracebackFrame, file: str, *, is_cell: bool, namespace: dict[str, object] | None = None) -> None:
        self.frame = frame
        self.file = file
        self.is_cell = is_cell
        self.namespace = namespace


def _places(error: BaseException, labels: Mapping[str, str]) -> list[_Place]:
    """Return where an exception came from, outermost first, with the place that a syntax error is about as the innermost."""
    places: list[_Place] = []
    current: BaseException | None = error
    for _ in range(CHAIN_LENGTH):
        if current is None:
            break
        places = _own_places(current, labels) + places
        if any(place.frame.is_users for place in places):
            break
        # An error without a frame of the user's was raised from another, which has some.
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    leaf = _first_leaf(error)
    if leaf is not error:
        places += _own_places(leaf, labels)
    return places


def _own_places(error: BaseException, labels: Mapping[str, str]) -> list[_Place]:
    places = _trimmed([_place(frame, line, labels) for frame, line in _walk(_skip_machinery(error.__traceback__))])
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        places.append(_syntax_error_place(error, labels))
    return places


def _walk(tb: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while tb is not None:
        # The line is missing in frames of generated code, on some versions of Python.
        yield tb.tb_frame, tb.tb_lineno or tb.tb_frame.f_lineno or 0
        tb = tb.tb_next


def _skip_machinery(tb: TracebackType | None) -> TracebackType | None:
    while tb is not None and _is_machinery(tb.tb_frame):
        tb = tb.tb_next
    return tb


def _is_machinery(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", ""))
    return frame.f_code.co_filename.startswith(OWN_FOLDER) or name.partition(".")[0] in _MACHINERY


def _trimmed(places: list[_Place]) -> list[_Place]:
    """Return the user's frames, and all that the innermost of them called."""
    last = max((index for index, place in enumerate(places) if place.frame.is_users), default=-1)
    return [place for index, place in enumerate(places) if place.frame.is_users or index > last]


def _bounded(places: list[_Place]) -> list[_Place]:
    hidden = len(places) - OUTER_FRAMES - INNER_FRAMES
    if hidden <= 1:
        return places
    gap = TracebackFrame(where=f"… {hidden} frames not shown …", line=0, function="", is_users=False)
    return [*places[:OUTER_FRAMES], _Place(gap, "", is_cell=False), *places[-INNER_FRAMES:]]


def _place(frame: FrameType, line: int, labels: Mapping[str, str]) -> _Place:
    file = frame.f_code.co_filename
    module = str(frame.f_globals.get("__name__", ""))
    # A torch built and installed in its source folder is a library as well.
    is_users = file in labels or not (is_library(file) or module.partition(".")[0] == "torch")
    where = labels.get(file) or (_local_file(file, module) if is_users else module or _stem(file))
    source = linecache.getline(file, line, frame.f_globals).strip()
    function = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)  # co_qualname: Python 3.11
    found = TracebackFrame(
        where=_text(where, LINE_CHARACTERS),
        line=line,
        function=_text(function.rpartition("<locals>.")[2], LINE_CHARACTERS),
        source=_text(source, LINE_CHARACTERS),
        is_users=is_users,
    )
    return _Place(found, file, is_cell=file in labels, namespace=frame.f_globals)


def _syntax_error_place(error: SyntaxError, labels: Mapping[str, str]) -> _Place:
    file, line = str(error.filename), int(error.lineno or 0)
    is_users = file in labels or not is_library(file)
    frame = TracebackFrame(
        where=_text(labels.get(file) or _stem(file) + ".py" * file.endswith(".py"), LINE_CHARACTERS),
        line=line,
        function="",
        source=_text(str(error.text or linecache.getline(file, line)).strip(), LINE_CHARACTERS),
        is_users=is_users,
    )
    return _Place(frame, file, is_cell=file in labels)


def _local_file(file: str, module: str) -> str:
    """Return a local module's file as seen from where its package lies: `model.py`, `parts/block.py`. Its folder is this machine's."""
    if file.startswith("<"):
        return file
    parts = file.split(os.sep)
    depth = module.count(".") + 1 + (parts[-1] == "__init__.py")
    return "/".join(parts[-depth:]) if module != "__main__" else parts[-1]


def _stem(file: str) -> str:
    return os.path.splitext(os.path.basename(file))[0]


def _excerpt(places: Sequence[_Place], *, of_last: bool) -> Excerpt | None:
    """Return the lines around the failing one: in the innermost cell, or else, or when asked for, in the innermost of the user's files."""
    mine = [place for place in places if place.frame.is_users and place.frame.line > 0]
    if not of_last:
        mine.sort(key=lambda place: place.is_cell)
    for place in reversed(mine):
        lines = linecache.getlines(place.file, place.namespace)
        failing = place.frame.line
        if failing > len(lines):  # no source: made by exec, or the file is gone
            continue
        first = max(1, min(failing - EXCERPT_LINES // 2, len(lines) - EXCERPT_LINES + 1))
        # A launched cell begins with an empty line for each magic's.
        first = next((number for number in range(first, failing) if any(line.strip() for line in lines[:number])), failing)
        shown = tuple(_text(line.rstrip(), LINE_CHARACTERS) for line in lines[first - 1 : first - 1 + EXCERPT_LINES])
        return Excerpt(where=place.frame.where, first=first, lines=shown, failing=failing)
    return None


# ---- words --------------------------------------------------------------------------------------------------------------------------


def _headline(error: BaseException, labels: Mapping[str, str], *, with_leaf: bool = True) -> str:
    name = type(error).__name__
    message = error.msg if isinstance(error, SyntaxError) and isinstance(error.msg, str) else _message(error)
    worker = re.match(r"Caught (\w+) (in [^\n]+)\.\nOriginal Traceback", message)
    if worker:  # a DataLoader's worker: torch raises again with the whole traceback as the message
        name, where = worker.groups()
        own = [line for line in message.splitlines() if re.match(rf"(?:[\w.]+\.)?{re.escape(name)}(?::|$)", line)]
        message = own[-1].partition(":")[2].strip() if own else ""
        message = f"{message} ({where})" if message else where
    line = next((line for line in message.splitlines() if line.strip()), "").strip()
    if name == "OutOfMemoryError":
        # What follows counts the bytes of other processes by their pid; it stays in the traceback.
        line = re.split(r"(?<=\.) GPU \d", line)[0]
    line = _scrubbed(_labelled(line, labels))
    leaf = _first_leaf(error) if with_leaf else error
    if leaf is not error:
        line = f"{line}: {_headline(leaf, labels, with_leaf=False)}"
    return _text(f"{name}: {line}" if line else name, HEADLINE_CHARACTERS)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return "(its message cannot be read: its __str__ raises)"


def _first_leaf(error: BaseException) -> BaseException:
    """Return the first exception that a group holds, whatever the depth; any other exception is its own."""
    for _ in range(CHAIN_LENGTH):
        inner = getattr(error, "exceptions", ()) if isinstance(error, _GROUP) else ()
        if not inner:
            break
        error = inner[0]
    return error


def _full_traceback(error: BaseException, labels: Mapping[str, str]) -> str:
    tb = _skip_machinery(error.__traceback__)
    try:
        shown = tb if isinstance(error, IceNotebookError) else tb or error.__traceback__
        text = "".join(traceback.format_exception(type(error), error, shown))
    except BaseException as problem:  # a class may lie about anything that traceback reads, __cause__ and __notes__ included
        frames = "".join(traceback.format_tb(tb))
        text = f"{frames}{type(error).__name__} (its traceback cannot be written in full: {type(problem).__name__})\n"
    return cut_middle(printable(_labelled(text.rstrip("\n"), labels)), TRACEBACK_BYTES)


def _labelled(text: str, labels: Mapping[str, str]) -> str:
    for file in sorted(labels, key=len, reverse=True):
        text = text.replace(file, labels[file])
    return text


def _scrubbed(text: str) -> str:
    text = without_addresses(text)
    for pattern, replacement in _SCRUBS:
        text = pattern.sub(replacement, text)
    return text


def _text(text: str, limit: int) -> str:
    text = printable(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _is_broken_connection(error: BaseException) -> bool:
    message = _message(error)
    if _OWN_MISTAKE.search(message):
        return False
    if any(kind.__name__ in _COMMUNICATION_TYPES for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and _COMMUNICATION_TEXT.search(message) is not None
