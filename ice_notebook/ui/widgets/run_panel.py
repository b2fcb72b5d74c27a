"""The run panel: a run's state, output, values and failure in the notebook while it happens, and a button that stops it.

The kernel sends, the page draws. What the page must know is one snapshot with a revision, in one synced trait; fresh output travels as
numbered messages beside it. Delivery is not assured, neither by the server nor by the sockets between, so everything may come twice, late or
not at all: a page that finds a gap asks (`hello`), and the last state is sent again until a page has confirmed it (`seen`).

Messages to the page: `output {seq, parts, starts, progress}` and `replay {seq, parts, starts, progress, tab}`, with one UTF-8 buffer of
lines, of which each `[rank, first, n]` of `parts` takes `n`, in the order in which they came; `beat {rev, seq, now}` once a second. `starts` is the number of each attempt's first line by attempt and
rank, `progress` the bars of each rank; an output has them when they changed. From the page: `hello {tab, rev, have}`, `seen {rev}`,
`press {op, nonce}`.

What a page asks for is answered to its tab: `read {tab, rank, first, n}` by `lines {tab, parts}`; `search {tab, id, text, ranks}` by
`found {tab, id, total, hits, done}` with a buffer of the lines, twice a second while it goes on; `file {tab, rank, attempt, offset}` by
`file {tab, rank, attempt, offset, size}` with a buffer of bytes.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import anywidget
import ipywidgets
import traitlets

from ice_notebook.runs.logs import Delta, RunLogs
from ice_notebook.runs.state import RunState
from ice_notebook.ui.widgets.kernel import keep_subshell, kernel_id, sendable
from ice_notebook.ui.widgets.panel_state import snapshot
from ice_notebook.ui.widgets.scripts import lean_module
from ice_notebook.wire.protocol import Plan

HERE = Path(__file__).parent
BEAT_S = 1.0  # a page that hears nothing for several beats says that the kernel is gone
RESEND_S = (0.3, 1.0, 4.0)  # after the end, until a page has confirmed the final state
# Before a page has said hello it may be deaf, its script still loading; where a running cell blocks every message of a page,
# as in nbclassic, it will not be heard before the end. These sends reach it all the same.
ANNOUNCE_S = (0.5, 1.5, 4.0)
REPLAY_PAUSE_S = 0.2  # hellos that were held up by a running cell arrive together; one answer is enough
READ_LINES = 2_000  # that one answer gives at most
FILE_BYTES = 2 << 20
FOUND_LINES = 500  # that a search gives; it counts them all
FOUND_S = 0.5
ECHO_S = 2.0  # the page waits 0.7 s for an answer before it interrupts the kernel


class PanelRun(Protocol):
    """What the panel needs of a run. `stop` and `kill` may be called from any thread and return at once."""

    @property
    def plan(self) -> Plan: ...
    @property
    def state(self) -> RunState: ...
    @property
    def logs(self) -> RunLogs: ...
    @property
    def folder(self) -> Path: ...
    @property
    def progress(self) -> Mapping[int, list[Any]]: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...


class RunPanel(anywidget.AnyWidget):
    """Show a run and let its user stop it.

    The run's thread calls `update`, at most every 100 ms, after anything changed and when it asked for it; messages of a page are handled on whichever thread the kernel picks. `cell_waits` says whether a cell
    waits for this run: only then may a page that gets no answer interrupt the kernel, which ends a waiting cell's run and would otherwise
    hit a cell that has nothing to do with it.

    `stop_pressed_at` is the `time.monotonic()` of the last press that was taken up, None before. `cells` are those that show the panel.
    """

    # As traits of the class: anywidget would make a class of its own for each panel that lacks them, while its launch is on its way.
    _esm = traitlets.Unicode(lean_module(HERE / "run_panel.js")).tag(sync=True)
    _css = traitlets.Unicode((HERE / "run_panel.css").read_text(encoding="utf-8")).tag(sync=True)
    _anywidget_id = traitlets.Unicode("ice_notebook.widgets.run_panel.RunPanel").tag(sync=True)  # as saved notebooks name it
    state = traitlets.Dict().tag(sync=True)
    kernel_id = traitlets.Unicode("").tag(sync=True)

    def __init__(self, run: PanelRun, *, cell_waits: bool = True) -> None:
        self.stop_pressed_at: float | None = None
        self.cells: set[str] = set()
        self._echoes = 0  # interrupts that presses may still cause
        self._run: PanelRun | None = run
        self._plan = run.plan
        self._logs = run.logs
        self._cursor = run.logs.cursor()
        self._lock = threading.RLock()
        self._made_at, self._made = time.time(), time.monotonic()
        self.cell_waits = cell_waits
        self._content: dict[str, Any] = {}
        self._rev = self._seq = self._seen = 0
        self._presses: deque[str] = deque(maxlen=16)
        self._problems: deque[str] = deque(maxlen=3)
        self._replayed: dict[str, float] = {}
        self._extras: dict[str, Any] = {"starts": {}, "progress": {}}  # as the page was told last
        self._searches: dict[str, str] = {}  # the newest of each tab
        self._announcements = list(ANNOUNCE_S)
        self._resends: list[float] = list(RESEND_S)
        self._sent_at = self._made
        self._ended_at: float | None = None
        super().__init__(state=self._look(), kernel_id=kernel_id(), layout=_layout())
        keep_subshell(self.comm)
        self.on_msg(self._received)

    def add_traits(self, **traits: Any) -> None:
        """Add those that the class does not have."""
        missing = {name: trait for name, trait in traits.items() if not self.has_trait(name)}
        if missing:
            super().add_traits(**missing)

    def __repr__(self) -> str:
        n = self._plan.world_size
        return f"RunPanel({self._plan.name}, {n} rank{'' if n == 1 else 's'})"

    def update(self) -> float | None:
        """Send what is new, from the run's thread. Return the seconds until the next call that is due even without news."""
        with self._lock:
            try:
                return self._update(time.monotonic())
            except Exception as error:  # the run's thread has more to do than to feed a panel
                self._note(error)
                return None if self._ended_at is not None else BEAT_S

    def is_echo_of_press(self) -> bool:
        """Return whether a `KeyboardInterrupt` that just came is the last press again, sent by the page on its second way.

        A press has one echo, soon after it; whatever comes then was meant by a person.
        """
        with self._lock:
            pressed_at = self.stop_pressed_at
            is_echo = self._echoes > 0 and pressed_at is not None and time.monotonic() - pressed_at < ECHO_S
            self._echoes -= is_echo
            return is_echo

    # ---- to the page -------------------------------------------------------------------------------------------------------------

    def _update(self, now: float) -> float | None:
        self._send_output(now)
        self._publish(now)
        if self._ended_at is not None:
            return self._resend(now)
        if self._announcements and now - self._made >= self._announcements[0]:
            self._announcements.pop(0)
            self._send_replay("", {}, now)
        elif now - self._sent_at >= BEAT_S:
            self._message({"kind": "beat", "rev": self._rev, "seq": self._seq, "now": time.time()}, now=now)
        due = [self._sent_at + BEAT_S, *(self._made + after for after in self._announcements[:1])]
        return max(0.01, min(due) - now)

    def _look(self) -> dict[str, Any]:
        """Return the trait's value for the run as it is now, with a new revision if it changed."""
        run = self._run
        if run is not None:
            content = snapshot(run.plan, run.state, run.folder)
            content["began_at"] = content["began_at"] or self._made_at
        else:
            content = dict(self._content)
        content |= {"cell_waits": self.cell_waits, "acks": list(self._presses), "problems": list(self._problems)}
        content = sendable(content)
        if content == self._content:
            return self.state  # type: ignore[no-any-return]  # a trait
        self._content = content
        self._rev += 1
        return {**content, "rev": self._rev, "seq": self._seq, "now": time.time()}

    def _publish(self, now: float) -> None:
        rev = self._rev
        state = self._look()
        if self._rev == rev:
            return
        self.state = state
        self._sent_at = now
        if self._run is not None and self._content["is_final"]:
            # ipywidgets keeps every widget until it is closed. The panel must not keep the run, and with it the values, that long.
            self._run = None
            self._ended_at = now

    def _resend(self, now: float) -> float | None:
        ended_at = self._ended_at or now
        while self._resends and now - ended_at >= self._resends[0] - 0.001:
            self._resends.pop(0)
            if self._seen < self._rev:
                self.send_state("state")
        return None if self._seen >= self._rev or not self._resends else max(0.01, ended_at + self._resends[0] - now)

    def _send_output(self, now: float) -> None:
        delta = self._logs.delta(self._cursor)
        news = {name: value for name, value in self._look_for_extras().items() if value != self._extras[name]}
        self._extras |= news
        if delta or news:
            self._seq += 1
            self._send_lines({"kind": "output", "seq": self._seq, **news}, delta, now)

    def _look_for_extras(self) -> dict[str, Any]:
        progress = sendable(self._run.progress) if self._run is not None else self._extras["progress"]
        return {"starts": self._logs.attempts(), "progress": progress}

    def _send_replay(self, tab: str, have: Mapping[int, int], now: float) -> None:
        self._extras = self._look_for_extras()
        self._send_lines({"kind": "replay", "seq": self._seq, "tab": tab, **self._extras}, self._logs.since(have), now)

    def _send_lines(self, content: dict[str, Any], delta: Delta, now: float) -> None:
        content |= {"now": time.time(), "parts": [[chunk.rank, chunk.first, len(chunk.lines)] for chunk in delta.chunks]}
        self._message(content, [_encoded(line for chunk in delta.chunks for line in chunk.lines)] if delta else [], now=now)

    def _message(self, content: dict[str, Any], buffers: list[bytes] | None = None, *, now: float) -> None:
        self._sent_at = now
        self.send(content, buffers)

    # ---- from the page -----------------------------------------------------------------------------------------------------------

    def _received(self, _widget: object, content: Any, _buffers: object) -> None:
        # An exception here would go to the server's log, where nobody looks.
        try:
            _HANDLERS[content["kind"]](self, content)
        except Exception as error:
            with self._lock:
                self._note(error)

    def _pressed(self, content: Mapping[str, Any]) -> None:
        """Take up a press of the button. It is repeated until its nonce appears among the acknowledgements."""
        nonce, op, now = str(content["nonce"]), content["op"], time.monotonic()
        with self._lock:
            is_repeat = nonce in self._presses
            if not is_repeat:
                self._presses.append(nonce)
            run = self._run
            if run is not None and not is_repeat:
                self.stop_pressed_at = now
                self._echoes = 1
            self._publish(now)
        # Not under the lock: the run may hold one of its own while it calls `update`.
        if run is not None and not is_repeat:
            if op == "kill":
                run.kill()
            else:
                run.stop()

    def _greeted(self, content: Mapping[str, Any]) -> None:
        """Answer a page that lacks output or state."""
        have = {int(rank): int(first) for rank, first in content.get("have", {}).items()}
        tab = str(content["tab"])
        with self._lock:
            now = time.monotonic()
            self._announcements.clear()
            if now - self._replayed.get(tab, -REPLAY_PAUSE_S) < REPLAY_PAUSE_S:
                return
            self._replayed = {**dict(list(self._replayed.items())[-15:]), tab: now}
            if int(content.get("rev", 0)) < self._rev:
                self.send_state("state")
            self._send_replay(tab, have, now)

    def _confirmed(self, content: Mapping[str, Any]) -> None:
        with self._lock:
            self._seen = max(self._seen, int(content["rev"]))

    # ---- what a page reads from the files

    def _asked_to_read(self, content: Mapping[str, Any]) -> None:
        rank, first, n = (int(content[name]) for name in ("rank", "first", "n"))
        lines = self._logs.read_back(rank, first, min(n, READ_LINES))
        answer = {
            "kind": "lines",
            "tab": content["tab"],
            "parts": [[rank, first, len(lines)]] if lines else [],
            "asked": [rank, first],
        }
        self.send({**answer, "now": time.time()}, [_encoded(lines)] if lines else [])

    def _asked_for_file(self, content: Mapping[str, Any]) -> None:
        rank, attempt, offset = (int(content[name]) for name in ("rank", "attempt", "offset"))
        path = self._logs.path_of(attempt, rank)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(offset)
            piece = file.read(FILE_BYTES)
        answer = {"kind": "file", "tab": content["tab"], "rank": rank, "attempt": attempt, "offset": offset, "size": size}
        self.send({**answer, "now": time.time()}, [piece])

    def _asked_to_search(self, content: Mapping[str, Any]) -> None:
        """Search in a thread of its own: files may be large, and the thread that this runs in is the page's."""
        tab = str(content["tab"])
        self._searches[tab] = str(content["id"])
        if content["text"]:
            threading.Thread(target=self._search, args=[content], name="ice-search", daemon=True).start()

    def _search(self, content: Mapping[str, Any]) -> None:
        tab, number = str(content["tab"]), str(content["id"])
        hits: list[list[int]] = []
        texts: list[str] = []
        total, told_at = 0, time.monotonic()

        def is_wanted() -> bool:
            return self._searches.get(tab) == number

        def tell(*, is_done: bool) -> None:
            answer = {"kind": "found", "tab": tab, "id": number, "total": total, "hits": hits, "done": is_done, "now": time.time()}
            self.send(answer, [_encoded(texts)])

        try:
            ranks = [int(rank) for rank in content["ranks"]]
            for rank, hit in self._logs.search(str(content["text"]), ranks, goes_on=is_wanted):
                total += 1
                if total <= FOUND_LINES:
                    hits.append([rank, hit.line])
                    texts.append(hit.text)
                if (now := time.monotonic()) - told_at > FOUND_S:
                    told_at = now
                    tell(is_done=False)
            if is_wanted():
                tell(is_done=True)
        except Exception as error:  # nobody else would show it
            with self._lock:
                self._note(error)

    def _note(self, error: Exception) -> None:
        """Show an error of ours in the panel."""
        where = traceback.extract_tb(error.__traceback__)[-1:]
        place = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in where)
        problem = f"{type(error).__name__}: {error}{place}"[:500]
        if problem in self._problems:
            return
        self._problems.append(problem)
        self._content = {**self._content, "problems": list(self._problems)}
        self._rev += 1
        self.state = {**self.state, "problems": list(self._problems), "rev": self._rev}


_HANDLERS = {
    "press": RunPanel._pressed,
    "hello": RunPanel._greeted,
    "seen": RunPanel._confirmed,
    "read": RunPanel._asked_to_read,
    "search": RunPanel._asked_to_search,
    "file": RunPanel._asked_for_file,
}


def _encoded(lines: Iterable[str]) -> bytes:
    return "\n".join(lines).encode(errors="replace")


def _layout() -> ipywidgets.Layout:
    """Return the layout of all panels: nobody sets it, and each of its own would be one more widget to send while a launch is on its way."""
    global _shared_layout  # noqa: PLW0603 - of this kernel
    if _shared_layout is None or _shared_layout.comm is None:  # none yet, or somebody has closed all widgets
        _shared_layout = ipywidgets.Layout()
    return _shared_layout


_shared_layout: ipywidgets.Layout | None = None
