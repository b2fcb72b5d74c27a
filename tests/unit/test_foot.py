"""The foot of a terminal: drawn over in place, in every window, whatever stands in it."""

from __future__ import annotations

import io

import pyte
import pytest

from ice_notebook.ui.foot import Foot, cut, tame

STATUS = "running · 2 ranks on cpu:0,1 · 0:02"
BARS = [
    "[0] epoch 0:  45%|██████████████▊                  | 18/40 [00:00<00:01, 19.89i" + "t/s]" * 20,
    "[0] " + "训练中" * 20,
    "[1] " + "👨‍👩‍👧 family 🙂 ❤️ 🇩🇪 " * 10,
    "[1] e\u0301\u0302\u0303 가 한 ﷽ \u200b" * 10,
]


class Window(io.StringIO):
    """A terminal's window, as pyte draws it."""

    def __init__(self, columns: int = 60, rows: int = 24) -> None:
        super().__init__()
        self.screen = pyte.Screen(columns, rows)
        self._parser = pyte.Stream(self.screen)

    def write(self, text: str) -> int:
        self._parser.feed(text.replace("\n", "\r\n"))
        return len(text)

    @property
    def lines(self) -> list[str]:
        lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> Window:
    made = Window()
    monkeypatch.setattr(Foot, "size", lambda _: (made.screen.columns, made.screen.lines))
    return made


@pytest.mark.parametrize("bar", BARS)
@pytest.mark.parametrize("columns", [10, 37, 60, 200])
def test_a_foot_is_one_row_a_line_whatever_is_in_it(window: Window, bar: str, columns: int) -> None:
    window.screen.resize(24, columns)
    foot = Foot(window)
    for n in range(30):
        foot.write([f"line {n}"] if n % 10 == 0 else [], [f"{n} · {STATUS}", f"{bar[:4]}{n}{bar[4:]}"])
    shown = window.lines
    assert shown[:3] == ["line 0", "line 10", "line 20"]
    assert len(shown) == 5
    assert shown[3].startswith("29 · ")
    assert shown[4].startswith(f"{bar[:4]}29")
    foot.write(["done"], [])
    assert window.lines == ["line 0", "line 10", "line 20", "done"]


def test_a_window_that_gets_narrower_keeps_one_foot(window: Window) -> None:
    foot = Foot(window)
    for columns in range(60, 20, -1):
        window.screen.resize(24, columns)
        foot.write([], [STATUS, BARS[0]])
    assert window.lines == [STATUS[:21].rstrip(), BARS[0][:21]]
    for columns in range(21, 90, 7):
        window.screen.resize(24, columns)
        foot.write([], [STATUS, BARS[0]])
    assert window.lines == [STATUS, BARS[0][:84]]


def test_the_cursor_waits_where_the_foot_begins(window: Window) -> None:
    # A terminal that breaks lines anew when its window changes moves the cursor with the line that it is in.
    foot = Foot(window)
    foot.write(["a line"], [STATUS, *BARS])
    assert (window.screen.cursor.y, window.screen.cursor.x) == (1, 0)
    assert len(window.lines) == 6


def test_a_low_window_has_a_low_foot(window: Window) -> None:
    window.screen.resize(4, 60)
    foot = Foot(window)
    for n in range(5):
        foot.write([f"line {n}"], [STATUS, *BARS])
    assert window.lines == ["line 3", "line 4", STATUS, cut(BARS[0], 60)]


@pytest.mark.parametrize(
    ("line", "columns", "shown"),
    [
        ("plain", 5, "plain"),
        ("plain", 4, "plai"),
        ("训练中", 5, "训练"),
        ("训练中", 6, "训练中"),
        ("a·b…c", 5, "a·b…c"),
        ("██▊", 2, "██"),
        ("e\u0301e\u0301", 1, "e\u0301"),
        ("👨‍👩‍👧!", 6, "👨‍👩‍👧"),  # as wide as where they are drawn apart
        ("❤️!", 2, "❤️"),
        ("❤!", 2, "❤!"),
        ("한!", 3, "한!"),
        ("", 0, ""),
    ],
)
def test_a_line_is_cut_by_columns(line: str, columns: int, shown: str) -> None:
    assert cut(line, columns) == shown


@pytest.mark.parametrize(
    "trick",
    ["\x1b]52;c;SGVsbG8=\x07", "\x1b[2J", "\x1b[?1000h", "\x9b2J", "\x9d0;t\x9c", "\x1bc", "\r", "\x07", "\u202e", "\u2066"],
)
def test_nothing_but_colours_gets_to_a_terminal(trick: str) -> None:
    assert "\x1b" not in tame(f"a{trick}b")
    assert not [character for character in tame(f"a{trick}b") if not character.isprintable()]
    assert tame(f"\x1b[1;31ma\tb{trick}\x1b[0m").startswith("\x1b[1;31ma\tb")
    assert tame(f"\x1b[1;31ma{trick}\x1b[0m").endswith("\x1b[0m")
