"""How a rank ended that could not say so itself: read from its exit code and from what it left behind. Runs in the agent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ice_notebook import exits
from ice_notebook import protocol as p

# What faulthandler writes when a process dies of a signal: all threads, the one that crashed under "Current", innermost frame first. A
# crash in a thread without Python, such as one of gloo's, has none.
_CURRENT_THREAD = re.compile(r"^Current thread \S+ (?:\[.*?\] )?\(most recent call first\):\n((?:  File .*\n)+)", re.MULTILINE)
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$', re.MULTILINE)
_FATAL = "Fatal Python error"
_AROUND = 2  # lines of context before and after the failing one


def failure_from_exit(
    exit_code: int, *, out_of_memory: bool, stacks: Path, sources: Path, error_file: Path, at: float
) -> p.Failure:
    """Return how a rank failed that left without a word.

    Args:
        exit_code: negative for the signal that ended it.
        out_of_memory: whether the machine has killed a process for want of memory meanwhile.
        stacks: the rank's faulthandler file, which names the line of a crash in C.
        sources: the cells' texts, {file name: [label, text]}.
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
    """Return message and call stack of torch's error file, empty when there is none."""
    try:
        message: Any = json.loads(path.read_bytes())["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""
    if isinstance(message, str):
        return message.strip().splitlines()[0] if message.strip() else "", ""
    extra = message.get("extraInfo", {}) if isinstance(message, dict) else {}
    lines = str(message.get("message", "")).strip().splitlines() if isinstance(message, dict) else []
    return (lines[0] if lines else ""), str(extra.get("py_callstack", ""))


def _read_crash(stacks: Path, sources: Path) -> tuple[tuple[p.Frame, ...], p.Excerpt | None, str]:
    """Return the frames of the thread that crashed, outermost first, the cell's lines around, and faulthandler's own text."""
    try:
        text = stacks.read_text(errors="replace")
        texts: dict[str, tuple[str, str]] = json.loads(sources.read_bytes())
    except (OSError, ValueError):
        return (), None, ""
    crash = text[text.rfind(_FATAL) :] if _FATAL in text else ""
    thread = _CURRENT_THREAD.search(crash)
    if thread is None:
        return (), None, crash
    frames, excerpt = [], None
    for match in _FRAME.finditer(thread[1]):  # innermost first
        file, line = match["file"], int(match["line"])
        if file not in texts:
            continue
        label, source = texts[file]
        lines = source.splitlines()
        excerpt = excerpt or _excerpt(label, lines, line)
        frames.append(
            p.Frame(
                where=label, line=line, function=match["function"], source=lines[line - 1].strip() if line <= len(lines) else ""
            )
        )
        crash = crash.replace(f'File "{file}"', label)
    return tuple(reversed(frames)), excerpt, crash


def _excerpt(label: str, lines: list[str], failing: int) -> p.Excerpt | None:
    first = max(1, failing - _AROUND)
    shown = lines[first - 1 : failing + _AROUND]
    return p.Excerpt(where=label, first=first, lines=tuple(shown), failing=failing) if shown else None
