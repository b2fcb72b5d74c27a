from __future__ import annotations

import io
import random
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from histories import History, broken_connection, plan, raised

from ice_notebook.runs.logs import RunLogs
from ice_notebook.runs.state import RunState
from ice_notebook.runs.stream_index import StreamIndexWriter
from ice_notebook.ui import text_view
from ice_notebook.ui.text_view import TextView
from ice_notebook.wire import protocol as p


class FakeRun:
    """A run whose events and output the test makes."""

    def __init__(self, world_size: int = 2, folder: Path | None = None, **changes: Any) -> None:
        self.plan = plan(world_size, **changes)
        self.history = History(world_size).begin()
        self.folder = folder
        self.logs = RunLogs(self.log_file) if folder is not None else RunLogs()
        self.progress: dict[int, list[Any]] = {}

    @property
    def state(self) -> RunState:
        return self.history.state

    def log_file(self, attempt: int, rank: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{attempt}.{rank}"

    def says(self, rank: int, text: str, *, missed: int = 0) -> None:
        if self.folder is not None:
            with self.log_file(self.history.attempt, rank).open("a") as file:
                file.write(text)
        self.logs.feed(self.history.attempt, rank, text.encode(), missed)


class Screen:
    """A view on a run, with a clock that the test sets."""

    def __init__(self, run: FakeRun, stream: io.StringIO | None = None, *, prints: bool = True, is_bounded: bool = False) -> None:
        self.now = 100.0
        self.run = run
        self.stream = stream or io.StringIO()
        self.view = TextView(run, self.stream, prints=prints, is_bounded=is_bounded, clock=lambda: self.now)
        self.wanted: float | None = None

    def after(self, seconds: float) -> list[str]:
        """Return what was printed since the last call, after so many seconds in steps of a tenth."""
        start = len(self.stream.getvalue())
        for _ in range(max(1, round(seconds * 10))):
            self.now += min(seconds, 0.1)
            self.wanted = self.view.update()
        return self.stream.getvalue()[start:].splitlines()


def test_whole_lines_come_with_their_rank_after_the_opening() -> None:
    run = FakeRun()
    screen = Screen(run)
    run.says(1, "from one\n")
    run.says(0, "epoch 1\nepoch 2\n")
    assert screen.after(1) == ["run: running · 2 ranks on cpu:0-1", "[0] epoch 1", "[0] epoch 2", "[1] from one"]
    assert screen.wanted is None


def test_what_is_missing_in_the_log_files_is_told_before_the_end() -> None:
    run = FakeRun()
    screen = Screen(run)
    run.history.loses_output(1, 100)
    screen.after(0.1)
    run.history.loses_output(1, 2048).returns(0).returns(1).end()
    missing = "rank 1: 2 KiB of its output is missing in its log file: No space left on device"
    assert screen.after(0.1) == [missing, "run: succeeded"]


def test_the_labels_are_as_wide_as_the_largest_rank() -> None:
    run = FakeRun(12)
    screen = Screen(run)
    run.says(3, "three\n")
    run.says(11, "eleven\n")
    assert screen.after(1)[1:] == ["[ 3] three", "[11] eleven"]


def test_a_line_is_printed_when_it_is_whole_and_at_once() -> None:
    run = FakeRun()
    screen = Screen(run)
    run.says(0, "first\nsec")
    assert screen.after(5)[1:] == ["[0] first"]
    run.says(0, "ond\nthird\n")
    assert screen.after(0.1) == ["[0] second", "[0] third"]
    assert screen.wanted is None


def test_a_row_of_dots_is_one_line_that_is_shown_now_and_then_as_far_as_it_is() -> None:
    run = FakeRun()
    screen = Screen(run)
    screen.after(0.1)
    printed = []
    for _ in range(250):
        run.says(0, ".")
        printed += screen.after(0.1)
    assert [len(line) for line in printed] == pytest.approx([104, 204], abs=2)
    run.says(0, " done\n")
    assert screen.after(2) == [f"[0] {'.' * 250} done"]


def test_a_progress_bar_is_printed_once_a_second_and_when_something_follows_it() -> None:
    run = FakeRun()
    screen = Screen(run)
    screen.after(0.1)
    printed = []
    for step in range(35):
        run.says(0, f"\rtrain {step}/35")
        printed += screen.after(0.1)
    assert printed == ["[0] train 10/35", "[0] train 20/35", "[0] train 30/35"]
    run.says(0, "\rtrain 35/35\nepoch 1 done\nsaved\n")
    assert screen.after(0.1) == ["[0] train 35/35", "[0] epoch 1 done", "[0] saved"]
    assert screen.after(3) == []


def test_a_bar_that_nothing_follows_shows_its_last_state() -> None:
    run = FakeRun()
    screen = Screen(run)
    run.says(0, "\r1/2")
    run.says(0, "\r2/2\n")
    assert screen.after(0.5)[1:] == []
    assert screen.wanted is not None
    assert screen.after(1) == ["[0] 2/2"]
    run.says(0, "\r3/4")
    run.history.returns(0).returns(1).end()
    assert screen.after(0.1) == ["[0] 3/4", "run: succeeded"]


def test_colours_are_left_out_where_the_stream_is_no_terminal() -> None:
    run = FakeRun()
    screen = Screen(run)
    run.says(0, "\x1b[31mred\x1b[0m word\n\n")
    run.says(0, "next\n")
    assert screen.after(1)[1:] == ["[0] red word", "[0]", "[0] next"]


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_stay_on_a_terminal_and_end_with_their_line() -> None:
    run = FakeRun()
    screen = Screen(run, Tty())
    run.says(0, "\x1b[31mred\nstill red\x1b[0m\n")
    lines = screen.after(1)[1:]
    assert [re.sub("\x1b.*?m", "", line) for line in lines] == ["[0] red", "[0] still red"]
    assert all(line.startswith("[0] \x1b[0;31m") and line.endswith("\x1b[0m") for line in lines)


def test_every_end_has_its_line() -> None:
    def ended(change: Any, **settings: Any) -> list[str]:
        run = FakeRun(**settings)
        screen = Screen(run)
        screen.after(0.1)
        change(run.history)
        return screen.after(0.1)

    assert ended(lambda h: h.returns(0).returns(1).end()) == ["run: succeeded"]
    failure = "rank 1 failed: ValueError: bad loss (cell, line 4)"
    assert ended(lambda h: h.fails(1).group_fails(1).end(p.Outcome.FAILED)) == [failure, "run: failed"]
    assert ended(lambda h: h.end(p.Outcome.FAILED, "the agent died")) == ["run: failed · the agent died"]
    assert ended(lambda h: h.fails(0).end(p.Outcome.FAILED, "the agent died")) == [
        "run: failed · rank 0: ValueError: bad loss (cell, line 4)"
    ]
    assert ended(lambda h: h.stop("interrupt").end(p.Outcome.STOPPED)) == ["run: stopping", "run: stopped by an interrupt"]
    interrupted = raised("KeyboardInterrupt")
    assert ended(lambda h: h.stop("timeout").fails(0, interrupted).group_fails(0).end(p.Outcome.FAILED), timeout=60.0) == [
        "run: stopping",
        "run: failed · stopped after timeout=60 s",
    ]


def test_a_failure_is_told_at_once_and_once() -> None:
    run = FakeRun()
    screen = Screen(run)
    screen.after(0.1)
    run.history.fails(1).fails(0, broken_connection()).group_fails(1)
    assert screen.after(0.1) == ["rank 1 failed: ValueError: bad loss (cell, line 4)"]
    run.history.exits(0, 1).exits(1, 1).end(p.Outcome.FAILED)
    assert screen.after(0.1) == ["run: failed"]
    assert screen.after(5) == []


def test_a_restart_stands_between_the_lines_of_its_attempts() -> None:
    run = FakeRun()
    screen = Screen(run)
    screen.after(0.1)
    run.says(0, "old zero")
    run.says(1, "old one\n")
    run.history.fails(1).group_fails(1, restarting=True).begin()
    run.says(0, "new zero\n")
    run.says(1, "new one\n")
    assert screen.after(1) == [
        "[0] old zero",
        "[1] old one",
        "restart 1/3: rank 1 failed: ValueError: bad loss (cell, line 4)",
        "[0] new zero",
        "[1] new one",
    ]


def test_what_a_rank_printed_last_comes_before_what_became_of_it() -> None:
    run = FakeRun()
    screen = Screen(run)
    screen.after(0.1)
    run.says(1, "last words")
    run.says(0, "\r3/10")
    run.history.fails(1).exits(1, 1).exits(0, -15).group_fails(1, restarting=True)
    assert screen.after(0.1) == [
        "[0] 3/10",
        "[1] last words",
        "restart 1/3: rank 1 failed: ValueError: bad loss (cell, line 4)",
    ]
    run.history.begin().fails(0).exits(0, 1).group_fails(0)
    run.says(0, "second words")
    run.says(1, "half a li")
    assert screen.after(0.1) == ["[0] second words", "rank 0 failed: ValueError: bad loss (cell, line 4)"]
    run.says(1, "ne\n")
    assert screen.after(0.1) == ["[1] half a line"], "a rank that still lives may end its line"


def test_a_restart_is_told_when_the_group_fails_and_not_again() -> None:
    run = FakeRun()
    screen = Screen(run)
    screen.after(0.1)
    run.history.fails(1).group_fails(1, restarting=True)
    assert screen.after(0.1) == ["restart 1/3: rank 1 failed: ValueError: bad loss (cell, line 4)"]
    run.history.begin()
    assert screen.after(1) == []
    run.history.fails(0).group_fails(0).end(p.Outcome.FAILED)
    assert screen.after(1) == ["rank 0 failed: ValueError: bad loss (cell, line 4)", "run: failed"]


def test_a_run_that_was_seen_at_its_end_only_reads_like_one_that_was_watched() -> None:
    texts = []
    for is_watched in (True, False):
        run = FakeRun()
        screen = Screen(run)
        steps = (
            lambda h: h.fails(1).group_fails(1, restarting=True),
            lambda h: h.begin(),
            lambda h: h.returns(0).returns(1),
            lambda h: h.end(),
        )
        for step in steps:
            step(run.history)
            if is_watched:
                screen.after(0.1)
        screen.after(0.1)
        texts.append(screen.stream.getvalue())
    assert texts[0] == texts[1]
    assert texts[0].splitlines()[-1] == "run: succeeded"


def test_nothing_is_printed_before_the_printing_thread_comes() -> None:
    run = FakeRun()
    screen = Screen(run, prints=False)
    run.says(0, "a line\n")
    assert screen.after(1) == []
    screen.view.flush()
    assert screen.stream.getvalue().splitlines() == ["run: running · 2 ranks on cpu:0-1", "[0] a line"]


def test_a_flush_after_the_end_prints_everything_even_when_nothing_was_collected() -> None:
    run = FakeRun()
    screen = Screen(run, prints=False)
    run.says(1, "last words")
    run.says(0, "\r9/10")
    run.history.returns(0).returns(1).end()
    screen.view.flush()
    text = screen.stream.getvalue()
    assert text.splitlines() == ["run: running · 2 ranks on cpu:0-1", "[0] 9/10", "[1] last words", "run: succeeded"]
    screen.view.flush()
    assert screen.view.update() is None
    assert screen.stream.getvalue() == text


def _counted(lines: list[str]) -> tuple[int, int]:
    """Return the numbers of lines shown and not shown."""
    hidden = [
        int(m[1].replace(",", "")) for line in lines if (m := re.search(r"… ([\d,]+) lines? not shown \(in the log files\)", line))
    ]
    return sum("line " in line for line in lines) - len([h for h in hidden if h == 1]), sum(hidden)


@pytest.mark.parametrize("n_ranks", [1, 8])
def test_a_flood_is_bounded_counted_and_its_end_shown(n_ranks: int) -> None:
    run = FakeRun(n_ranks)
    screen = Screen(run, is_bounded=True)
    screen.after(0.1)
    shown = hidden = fed = 0
    for _ in range(30):
        for rank in range(n_ranks):
            run.says(rank, "".join(f"line {fed + n}\n" for n in range(2000)))
        fed += 2000
        lines = screen.after(0.1)
        now_shown, now_hidden = _counted(lines)
        shown += now_shown
        hidden += now_hidden
    assert shown < 6 * text_view.LINES_PER_S
    for rank in range(n_ranks):
        run.says(rank, f"line {fed}\n")
        run.history.returns(rank)
    run.history.end()
    lines = screen.after(0.1)
    now_shown, now_hidden = _counted(lines)
    assert shown + now_shown + hidden + now_hidden == n_ranks * (fed + 1)
    assert [line for line in lines if line.endswith(f" line {fed}")] == [f"[{rank}] line {fed}" for rank in range(n_ranks)]
    assert lines[-1] == "run: succeeded"


def test_long_lines_are_bounded_by_their_bytes() -> None:
    run = FakeRun(1)
    screen = Screen(run, is_bounded=True)
    for _ in range(20):
        run.says(0, ("x" * 3000 + "\n") * 200)
        screen.after(0.1)
    assert len(screen.stream.getvalue()) < 4 * text_view.BYTES_PER_S


def test_output_that_the_agent_left_out_is_told_in_its_place() -> None:
    run = FakeRun()
    screen = Screen(run)
    run.says(0, "one\n")
    screen.after(1)
    run.says(0, "two\n", missed=9500)
    lines = screen.after(1)
    assert lines[1:] == ["[0] two"]
    assert lines[0].startswith("[0] … ")
    assert "not shown" in lines[0]
    assert "\x01" not in screen.stream.getvalue()


def test_what_nobody_has_printed_for_a_while_is_a_seconds_worth_and_a_count() -> None:
    run = FakeRun(1)
    screen = Screen(run, prints=False, is_bounded=True)
    for n in range(200):
        run.says(0, f"line {n}\n" * 200)
        screen.after(0.1)
    screen.view.flush()
    opening, note, *lines = screen.stream.getvalue().splitlines()
    assert opening.startswith("run: running")
    assert len(lines) == text_view.LINES_PER_S
    assert note == f"[0] … {40_000 - text_view.LINES_PER_S:,} lines not shown (in the log files)"
    assert lines[-1] == "[0] line 199"


@pytest.mark.parametrize("when", ["at once", "at the end"])
def test_outside_a_page_a_flood_is_printed_to_the_last_line(tmp_path: Path, when: str) -> None:
    n_ranks, n_lines = 3, 60_000
    run = FakeRun(n_ranks, tmp_path)
    screen = Screen(run, prints=when == "at once")
    for fed in range(0, n_lines, 6000):
        for rank in range(n_ranks):
            run.says(rank, "".join(f"line {fed + n}\n" for n in range(6000)))
        screen.after(0.1)
    for rank in range(n_ranks):
        run.says(rank, "\r 50%|#####     \r100%|##########\nlast words")
        run.history.returns(rank)
    run.history.end()
    screen.view.update()
    screen.view.flush()
    lines = screen.stream.getvalue().splitlines()
    for rank in range(n_ranks):
        expected = [*(f"line {n}" for n in range(n_lines)), "100%|##########", "last words"]
        assert [line.partition("] ")[2] for line in lines if line.startswith(f"[{rank}]")] == expected
    assert lines[-1] == "run: succeeded"


WORDS = "of some words that make it longer, and 日本語 as well"


@pytest.mark.parametrize("seed", range(4))
def test_no_line_is_cut_or_split_whenever_it_is_read(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    n_lines = 20_000
    data = b"".join(f"line {n} {WORDS}\r\n".encode() for n in range(n_lines)) + b"and half"
    run = FakeRun(1, tmp_path)
    screen = Screen(run, prints=False)
    at = 0
    while at < len(data):
        piece = data[at : at + chance.choice([100, 700, 5_000, 30_000, 200_000])]
        at += len(piece)
        with run.log_file(0, 0).open("ab") as file:
            file.write(piece)
        run.logs.feed(0, 0, piece)
        screen.now += chance.choice([0.001, 0.3, 20.0])
        if chance.random() < 0.5:
            screen.view.update()
        if chance.random() < 0.5:
            screen.view.flush()
    run.history.returns(0).end()
    screen.view.flush()
    lines = [line for line in screen.stream.getvalue().splitlines() if line.startswith("[0] ")]
    whole = [line for line in lines if line.endswith("as well")]
    assert whole == [f"[0] line {n} {WORDS}" for n in range(n_lines)]
    assert lines[-1] == "[0] and half"


def test_a_line_is_as_long_as_it_likes(tmp_path: Path) -> None:
    run = FakeRun(2, tmp_path)
    screen = Screen(run, prints=False)
    numbers = ", ".join(map(str, range(3000)))
    giant = "0123456789" * 300_000
    run.says(0, f"{numbers}\n\x1b[31m{numbers}\x1b[0m\n")
    for start in range(0, len(giant), 70_000):
        run.says(1, giant[start : start + 70_000])
        screen.view.flush()
        screen.now += 1
    assert screen.view._ranks[0, 1].lines[False]._long_at == 0, "it is in its file, and not in memory"
    run.says(0, "between\n")
    screen.view.flush()
    run.says(1, "\nafter\n")
    run.history.returns(0).returns(1).end()
    screen.view.flush()
    assert screen.stream.getvalue().splitlines() == [
        "run: running · 2 ranks on cpu:0-1",
        f"[0] {numbers}",
        f"[0] {numbers}",
        "[0] between",
        f"[1] {giant}",
        "[1] after",
        "run: succeeded",
    ]


def test_what_a_full_disk_kept_out_of_the_file_is_shown_in_its_place(tmp_path: Path) -> None:
    run = FakeRun(1, tmp_path)
    screen = Screen(run, prints=False)
    run.says(0, "one\ntw")
    run.logs.feed(0, 0, b"o\nthree\n", is_kept=False)
    run.logs.feed(0, 0, b"fo", is_kept=False)
    run.says(0, "ur\nfive\n")
    screen.view.flush()
    assert screen.stream.getvalue().splitlines()[1:] == ["[0] one", "[0] two", "[0] three", "[0] four", "[0] five"]


def test_a_log_file_that_is_gone_is_told_in_the_place_of_its_lines(tmp_path: Path) -> None:
    run = FakeRun(1, tmp_path)
    screen = Screen(run, prints=False)
    run.says(0, "unheard\n" * 1000)
    run.log_file(0, 0).unlink()
    screen.view.flush()
    assert screen.stream.getvalue().splitlines()[1:] == ["[0] … 7.81 KiB not shown"]


def test_stderr_may_be_shown_apart(tmp_path: Path) -> None:
    run = FakeRun(1, tmp_path)
    out, err = io.StringIO(), io.StringIO()
    view = TextView(run, out, errors=err, clock=lambda: 0.0)
    index = StreamIndexWriter(run.log_file(0, 0))
    at = 0
    for std, text in ((1, "out 1\nou"), (2, "err 1\n"), (1, "t 2\n"), (2, "err 2\nerr"), (1, "out 3\n"), (2, " 3\n")):
        index.note(std, at)
        run.says(0, text)
        at += len(text)
    index.close()
    view.flush()
    run.history.returns(0).end()
    view.flush()
    assert out.getvalue().splitlines()[1:] == ["[0] out 1", "[0] out 2", "[0] out 3", "run: succeeded"]
    assert err.getvalue().splitlines() == ["[0] err 1", "[0] err 2", "[0] err 3"]


def test_torchs_template_stands_before_lines_and_a_filter_keeps_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(text_view.PREFIX_TEMPLATE, "<${role_name}${local_rank}|${rank}|$other> ")
    run = FakeRun(2)
    stream = io.StringIO()
    view = TextView(run, stream, shown={1}, clock=lambda: 0.0)
    run.says(0, "not shown\n")
    run.says(1, "shown\n\n")
    view.flush()
    assert stream.getvalue().splitlines()[1:] == ["<default1|1|$other> shown", "<default1|1|$other> "]


class Blocked(io.StringIO):
    """A terminal that someone has paused."""

    def __init__(self) -> None:
        super().__init__()
        self.is_writing = threading.Event()
        self.may_go_on = threading.Event()

    def write(self, text: str) -> int:
        self.is_writing.set()
        assert self.may_go_on.wait(5)
        return super().write(text)


def test_a_blocked_stream_does_not_hold_up_the_runs_thread() -> None:
    run = FakeRun()
    stream = Blocked()
    screen = Screen(run, stream, prints=False)
    screen.view.update()
    printer = threading.Thread(target=screen.view.flush)
    printer.start()
    assert stream.is_writing.wait(5)
    run.says(0, "meanwhile\n")
    screen.after(1)
    stream.may_go_on.set()
    printer.join(5)
    screen.view.flush()
    assert stream.getvalue().splitlines() == ["run: running · 2 ranks on cpu:0-1", "[0] meanwhile"]


def test_a_closed_terminal_does_not_end_the_run() -> None:
    run = FakeRun()
    screen = Screen(run)
    screen.stream.close()
    run.says(0, "unheard\n")
    screen.view.update()
    run.history.end()
    assert screen.view.update() is None


# ---- a terminal that somebody waits at


class TerminalStream(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a terminal of 60 columns shows of a run: `shows()` prints what is new and returns its lines."""
    import pyte

    run = FakeRun(max_restarts=1)
    monkeypatch.setattr(text_view.time, "time", lambda: run.state.began_at + 41.0)
    monkeypatch.setattr("ice_notebook.ui.foot._WIDTH", 60)
    stream = TerminalStream()
    screen = Screen(run, stream, prints=False)

    def shows(seconds: float = 0.3) -> list[str]:
        screen.after(seconds)
        screen.view.flush()
        seen = pyte.Screen(60, 24)
        pyte.Stream(seen).feed(stream.getvalue().replace("\n", "\r\n"))
        return [line.rstrip() for line in seen.display if line.strip()]

    run.shows = shows
    run.stream = stream
    return run


def test_a_foot_says_how_the_run_stands_and_is_drawn_over(terminal: Any) -> None:
    foot = "running · 2 ranks on cpu:0-1 · 0:41 · restarts 0/1"
    terminal.says(0, "one\n")
    first = terminal.shows()
    assert first[-2:] == ["[0] one", foot], first
    terminal.says(1, "two\n")
    assert terminal.shows()[1:] == ["[0] one", "[1] two", foot]
    before = len(terminal.stream.getvalue())
    terminal.shows()
    assert len(terminal.stream.getvalue()) == before, "nothing is written when nothing changed"


def test_bars_stand_in_the_foot_until_they_are_done(terminal: Any) -> None:
    terminal.progress = {1: [["epoch", 1, 3], ["step", 1200, None]]}
    for step in range(3):
        terminal.says(0, f"\r{step * 40}%|####")
        shown = terminal.shows()
        assert shown[-2:] == [f"[0] {step * 40}%|####", "[1] epoch: 1/3 · step: 1,200"]
        assert len(shown) == 4
    terminal.says(0, "\r100%|####\nsaved\n")
    assert terminal.shows()[1:4] == ["[0] 100%|####", "[0] saved", "running · 2 ranks on cpu:0-1 · 0:41 · restarts 0/1"]


def test_a_foot_never_wraps_and_is_gone_at_the_end(terminal: Any) -> None:
    terminal.says(0, "\r" + "x" * 300)
    assert [len(line) for line in terminal.shows()[-2:]] == [50, 60]
    terminal.history.returns(0).returns(1).exits(0).exits(1).end()
    assert terminal.shows()[-1] == "run: succeeded"
