"""How a rank ended that could not say so itself: read from its exit code and from what it left behind. Runs in the agent."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

from ice_notebook.errors import printable
from ice_notebook.host.suspect_files import read_suspect
from ice_notebook.runs import exits
from ice_notebook.wire import protocol as p

# What faulthandler writes when a process dies of a signal: all threads, the one that crashed under "Current", innermost frame first. A
# crash in a thread without Python, such as one of gloo's, has none.
_CURRENT_THREAD = re.compile(r"^Current thread \S+ (?:\[.*?\] )?\(most recent call first\):\n((?:  File .*\n)+)", re.MULTILINE)
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d{1,9}) in (?P<function>.*)$', re.MULTILINE)
_FATAL = "Fatal Python error"
# What is read of files that user code can write to.
ERROR_FILE_BYTES = 1 << 20
STACKS_BYTES = 256 << 10  # of their end
SOURCES_BYTES = 64 << 20
STACK_CHARACTERS = 64 << 10
MOST_FRAMES = 100  # as faulthandler
_AROUND = 2  # lines of context before and after the failing one


def failure_from_exit(
    exit_code: int, *, out_of_memory: bool, stacks: Path, sources: Path, error_file: Path, at: float
) -> p.Failure:
    """Return how a rank failed that left without a word.

    Args:
        exit_code: negative for the signal that ended it.
        out_of_memory: whether the machine has killed a process for want of memory meanwhile.
        stacks: the rank's faulthandler file, which names the line of a crash in C.
        sources: the cells' texts, {file name: [label, text, ...]}.
        error_file: torch's TORCHELASTIC_ERROR_FILE, which `@record` in a user's code may have written.
        at: when, in seconds since the epoch.
    """
    headline = exits.explain_exit(exit_code, out_of_memory=out_of_memory)
    message, call_stack = _read_error_file(error_file)
    frames, excerpt, crash = _read_crash(stacks, sources)
    return p.Failure(
        kind="signal" if exit_code < 0 else "exit",
        headline=f"{message} ({headline})" if message else headline,
        frames=frames,
        excerpt=excerpt,
        traceback=call_stack or crash,
        exit_code=exit_code,
        at=at,
    )


def _read_error_file(path: Path) -> tuple[str, str]:
    """Return the message and the call stack in torch's error file; both are empty when it is missing or has another form."""
    try:
        found = json.loads(read_suspect(path, ERROR_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return "", ""
    message = _item(found, "message")
    if isinstance(message, str):
        return _first_line(message), ""
    return _first_line(_item(message, "message")), _text(_item(_item(message, "extraInfo"), "py_callstack"))[:STACK_CHARACTERS]


def _item(found: Any, name: str) -> Any:
    return found.get(name) if isinstance(found, dict) else None


def _text(found: Any) -> str:
    return printable(found) if isinstance(found, str) else ""


def _first_line(found: Any) -> str:
    lines = _text(found).strip().splitlines()
    return lines[0][: p.HEADLINE_CHARACTERS] if lines else ""


def _read_sources(path: Path) -> dict[str, tuple[str, str]]:
    """Return the cells' texts, and nothing that is not one: user code may have written to the file."""
    try:
        found = json.loads(read_suspect(path, SOURCES_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    return {file: (printable(pair[0]), printable(pair[1])) for file, pair in pairs if _is_text_with_label(pair)}


def _is_text_with_label(found: Any) -> bool:
    return isinstance(found, list) and len(found) >= 2 and all(isinstance(part, str) for part in found[:2])


def _read_crash(stacks: Path, sources: Path) -> tuple[tuple[p.TracebackFrame, ...], p.Excerpt | None, str]:
    """Return the frames of the thread that crashed, outermost first, the cell's lines around, and faulthandler's own text."""
    try:
        text = read_suspect(stacks, STACKS_BYTES, is_end=True).decode(errors="replace")
    except OSError:
        return (), None, ""
    texts = _read_sources(sources)
    crash = text[text.rfind(_FATAL) :] if _FATAL in text else ""
    thread = _CURRENT_THREAD.search(crash)
    if thread is None:
        return (), None, crash
    frames, excerpt = [], None
    for match in itertools.islice(_FRAME.finditer(thread[1]), MOST_FRAMES):  # innermost first
        file, line = match["file"], int(match["line"])
        if file not in texts:
            continue
        label, source = texts[file]
        lines = source.splitlines()
        excerpt = excerpt or _excerpt(label, lines, line)
        called = lines[line - 1].strip() if line <= len(lines) else ""
        frames.append(p.TracebackFrame(where=label, line=line, function=match["function"], source=called[: p.LINE_CHARACTERS]))
        crash = crash.replace(f'File "{file}"', label)
    return tuple(reversed(frames)), excerpt, crash


def _excerpt(label: str, lines: list[str], failing: int) -> p.Excerpt | None:
    first = max(1, failing - _AROUND)
    shown = [line[: p.LINE_CHARACTERS] for line in lines[first - 1 : failing + _AROUND]]
    return p.Excerpt(where=label, first=first, lines=tuple(shown), failing=failing) if shown else None
