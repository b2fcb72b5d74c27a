"""Terminal lines: equal to a real terminal's screen, however the bytes are split, and bounded."""

from __future__ import annotations

import io
import random
import tracemalloc

import pyte
import pytest
from rich.console import Console
from rich.progress import Progress
from tqdm import tqdm

from ice_notebook.runs.terminal import (
    ELLIPSIS,
    LIVE_LINES,
    MAX_COLUMNS,
    REDRAWN,
    Style,
    Terminal,
    is_plain,
    plain_text,
    style_after,
)


def lines_of(data: bytes, *, splits: random.Random | None = None, longest: int = 40) -> list[str]:
    terminal, lines, at = Terminal(), [], 0
    while at < len(data):
        size = splits.randint(1, longest) if splits else len(data)
        lines += terminal.feed(data[at : at + size])
        at += size
    return lines + terminal.live()


def shown(data: bytes, **how) -> list[str]:
    lines = [plain_text(line).rstrip() for line in lines_of(data, **how)]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def screen_of(data: bytes) -> list[str]:
    screen = pyte.Screen(200, 300)
    pyte.ByteStream(screen).feed(data)
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines


BAR = {"mininterval": 0, "miniters": 1, "ncols": 80}


def one_bar(file):
    for _ in tqdm(range(300), file=file, **BAR):
        pass
    file.write("after\n")


def nested_bars(file):
    for _ in tqdm(range(4), file=file, desc="epoch", position=0, **BAR):
        for _ in tqdm(range(20), file=file, desc="step", position=1, leave=False, **BAR):
            pass
    file.write("\nafter\n")


def three_bars(file):
    bars = [tqdm(total=30, file=file, desc=f"w{i}", position=i, **BAR) for i in range(3)]
    for k in range(90):
        bars[k % 3].update()
    for bar in bars:
        bar.close()
    file.write("\n\n\nafter\n")


def written_over_a_bar(file):
    for i in tqdm(range(20), file=file, **BAR):
        if i % 5 == 0:
            tqdm.write(f"note {i}", file=file)
    file.write("after\n")


def rich_progress(file):
    console = Console(file=file, force_terminal=True, width=80, color_system="truecolor")
    with Progress(console=console, auto_refresh=False) as progress:
        first, second = progress.add_task("load", total=30), progress.add_task("train", total=60)
        for i in range(30):
            progress.update(first, advance=1)
            progress.update(second, advance=2)
            if i % 10 == 0:
                progress.console.print(f"[red]note[/red] {i}")
            progress.refresh()
    file.write("after\n")


def colours(file):
    file.write("\x1b[31mred\x1b[0m \x1b[1;32mbold\x1b[0m \x1b[38;5;200mx\x1b[38;2;1;2;3my\x1b[0m\nplain \x1b[7mno\x1b[27m\n")


def erasures(file):
    file.write("working...\r\x1b[Kdone\nabc\b\bXY\n12345\x1b[3D--\n\x1b[2Kz\nabcdef\x1b[3D\x1b[1K\n1\n2\n3\x1b[2A\x1b[J\nx\n")


def moves(file):
    file.write(
        "one\ntwo\nthree\x1b[2A\x1b[1GON\x1b[2B\x1b[10Cfar\x1b[4Dx\n\x1b]0;title\x07seen\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n"
    )
    file.write("\x1b[?25lhidden\x1b[?25h\x1b(B\x1b7\x1b8\n\x1b[2Fup\x1b[Edown\n")


def words(file):
    file.write("plain\ntext ünïcödé 日本語 ok\n\n日本\r語\ntail without newline")


STREAMS = [one_bar, nested_bars, three_bars, written_over_a_bar, rich_progress, colours, erasures, moves, words]


def bytes_of(stream) -> bytes:
    class Tty(io.StringIO):
        def isatty(self):
            return True

    file = Tty()
    stream(file)
    return file.getvalue().replace("\n", "\r\n").encode()  # as a pty hands it over


@pytest.mark.parametrize("stream", STREAMS)
def test_lines_are_a_terminals_screen(stream):
    data = bytes_of(stream)
    assert shown(data) == screen_of(data)


@pytest.mark.parametrize("stream", STREAMS)
def test_lines_do_not_depend_on_where_bytes_are_split(stream):
    data = bytes_of(stream)
    whole = lines_of(data)
    for seed in range(20):
        assert lines_of(data, splits=random.Random(seed)) == whole
    assert lines_of(data, splits=random.Random(0), longest=1) == whole


SECRET = "SGVsbG8="
EIGHT_BITS = {
    "csi": "\u009b31mred\u009b0m\u009b2J\u009b5n",
    "osc": f"\u009d52;c;{SECRET}\u009c\u009d0;title\x07",
    "strings": f"\u0090{SECRET}\u009c\u0098{SECRET}\u009c\u009e{SECRET}\x1b\\\u009f{SECRET}\x07",
    "others": "".join(map(chr, (*range(0x80, 0x90), *range(0x91, 0x98), 0x99, 0x9A, 0x9C))),
}


@pytest.mark.parametrize("controls", EIGHT_BITS.values(), ids=EIGHT_BITS)
def test_controls_with_eight_bits_are_those_with_seven(controls):
    data = f"ü one {controls}two\r\nthree {controls}\r\nfour".encode()
    lines = lines_of(data)
    assert [plain_text(line).replace("red", "") for line in lines] == ["ü one two", "three ", "four"]
    assert not any("\x80" <= character <= "\x9f" for character in "".join(lines))
    for seed in range(20):
        assert lines_of(data, splits=random.Random(seed), longest=3) == lines


@pytest.mark.parametrize("start", ["\x1b]0;title", f"\x1b]52;c;{SECRET}", "\x1bP1$q", "\x1b_G", "\x1b^x", "\x1bXx", "\u009d0;t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\x1b[m\n", "\x18\n", "\x1b]0;and another\x07\n"])
def test_a_string_without_end_swallows_no_more_than_its_line(start, end):
    data = f"before {start}{end}line 1\nline 2\n{start}".encode()
    assert lines_of(data) == ["before ", "line 1", "line 2"]
    for seed in range(20):
        assert lines_of(data, splits=random.Random(seed), longest=3) == ["before ", "line 1", "line 2"]


def test_a_long_string_for_the_terminal_itself_is_no_text():
    picture = b"\x1b]1337;File=inline=1:" + b"QUJD" * 50_000 + b"\x07"
    assert lines_of(b"a" + picture + b"b\n") == ["ab"]
    assert lines_of(b"a" + picture + b"b\n", splits=random.Random(2), longest=5_000) == ["ab"]


def test_split_characters_are_put_together_and_bad_bytes_are_replaced():
    assert lines_of("ü日🙂\r\n".encode(), splits=random.Random(1), longest=1) == ["ü日🙂"]
    assert lines_of(b"a\xffb\n") == ["a\ufffdb"]


def test_half_a_wide_character_is_none():
    assert shown("日本\b\bx".encode()) == ["日x"]
    assert shown("日本\b\b\bx".encode()) == [" x本"]


def test_newline_with_and_without_carriage_return_is_the_same():
    assert lines_of(b"a\r\nb\nc\r\r\n") == ["a", "b", "c"]


def test_a_line_drawn_over_is_marked_and_others_are_not():
    lines = lines_of(bytes_of(written_over_a_bar))
    assert [plain_text(line).rstrip() for line in lines if not line.startswith(REDRAWN)] == [
        "note 0",
        "note 5",
        "note 10",
        "note 15",
        "after",
    ]
    assert all(line.startswith(REDRAWN) for line in lines_of(b"\r  0%|        | 0/9"))
    assert lines_of(b"plain\r\nred \x1b[31mx\x1b[0m\r\n")[0] == "plain"
    assert lines_of(b"50%\r60%")[0].startswith(REDRAWN)
    assert lines_of(b"a-\b\\\n")[0].startswith(REDRAWN)


def test_each_line_carries_its_own_colours():
    assert lines_of(b"\x1b[31mred\r\nstill\x1b[0m plain\r\n") == ["\x1b[0;31mred", "\x1b[0;31mstill\x1b[m plain"]
    assert lines_of(b"a\x1b[1mb\x1b[4mc\x1b[22md\x1b[me") == ["a\x1b[0;1mb\x1b[0;1;4mc\x1b[0;4md\x1b[me"]


def test_a_style_holds_each_attribute_once():
    style = Style()
    for _ in range(1000):
        style = style_after(style, "1;31;48;5;17")
    assert style.codes == "1;31;48;5;17"
    assert style_after(style, "39;49;22") == Style()
    assert style_after(style, "0;38:2:1:2:3").codes == "38;2;1;2;3"
    assert style_after(Style(), "38;5;999") == Style()
    assert style_after(Style(), "38;2;1") == Style()


def test_only_the_newest_lines_can_change():
    terminal = Terminal()
    finished = terminal.feed(b"".join(b"%d\r\n" % i for i in range(200)))
    assert finished == [str(i) for i in range(200 - LIVE_LINES + 1)]
    assert terminal.first == len(finished)
    assert terminal.end == 200
    terminal.feed(b"\x1b[1000A\rtop")
    assert terminal.changed == terminal.first
    assert plain_text(terminal.live()[0]).startswith("top")
    assert terminal.end == 200


def test_changed_names_the_lowest_line_that_changed():
    terminal = Terminal()
    terminal.feed(b"a\r\nb\r\n")
    assert terminal.changed == 0
    terminal.feed(b"c")
    assert terminal.changed == 2
    terminal.feed(b"\r\n\x1b[2Ax")
    assert terminal.changed == 1


def test_a_line_once_numbered_stays():
    terminal = Terminal()
    terminal.feed(b"a\r\nb\r\nc\x1b[2A\r\x1b[J")
    assert (terminal.end, [plain_text(line) for line in terminal.live()]) == (3, ["", "", ""])


def test_an_endless_line_costs_bounded_memory():
    terminal, block = Terminal(), b"x" * 65536
    tracemalloc.start()
    for _ in range(800):  # 50 MB
        terminal.feed(block)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    (line,) = terminal.live()
    assert line == "x" * (MAX_COLUMNS - 1) + ELLIPSIS
    assert terminal.feed(b"\r\nnext") == []
    assert terminal.live()[1] == "next"


@pytest.mark.parametrize(
    "filler", [b"\x1b[31mx", b"\x1b]0;", b"\x1b[1;", b"\x1b[999999999C", "é\u0301".encode(), b"\r.", b"\x1b[1m\b"]
)
def test_endless_steering_costs_bounded_memory(filler):
    terminal = Terminal()
    for _ in range(20):
        terminal.feed(filler * 5000)
    assert sum(map(len, terminal.live())) < 40 * MAX_COLUMNS
    terminal.feed(b"\x07\x1b[m\r\nnext\r\n")
    assert plain_text(terminal.live()[-1]).endswith("next")


def test_a_long_line_is_cut_alike_on_both_paths():
    plain, coloured = b"y" * (MAX_COLUMNS + 9) + b"\r\n", b"\x1b[31m\x1b[0m" + b"y" * (MAX_COLUMNS + 9) + b"\r\n"
    assert [plain_text(line) for line in lines_of(plain)] == [plain_text(line) for line in lines_of(coloured)]
    assert lines_of(b"y" * MAX_COLUMNS) == ["y" * MAX_COLUMNS]
    assert lines_of(plain, splits=random.Random(3), longest=999) == lines_of(plain)


def test_plain_is_text_and_newlines():
    assert is_plain("tab\t, ünïcödé\r\nand\n".encode())
    assert is_plain(b"half a newline\r")
    assert not is_plain(b"10%\r20%")
    assert not is_plain(b"\x1b[31m")
    assert not is_plain(b"a\bb")
