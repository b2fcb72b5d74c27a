"""The README's table and the picture of launches say what was measured. Nothing is measured here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks is no part of the package

from benchmarks import __main__ as program
from benchmarks import plot
from benchmarks.bench import Bench
from benchmarks.benches import load, standby
from benchmarks.figures import Beyond
from benchmarks.page import format_page, summaries_of
from benchmarks.peers import PEERS
from benchmarks.summary import BEGIN, END, ROWS, format_short, format_time, replace_marked

README = Path(__file__).parents[2] / "README.md"
SMALL = Bench("standby", "Launch after launch", "Two ranks.", (), measure=lambda peer, scratch: {}, peers=PEERS)
SUMMARIES = summaries_of(
    {
        ("standby", "line_6", "ours"): [0.03, 0.05, 0.04],
        ("standby", "line_6", "spawn"): [3.2],
        ("standby", "line_6", "accelerate"): [0.1],
        ("standby", "restart_10", "ours"): [0.5],
        ("standby", "restart_10", "spawn"): [Beyond(60.0)],
        ("standby", "private", "ours"): [1040.4],
        ("standby", "restarts", "ours"): ["yes"],
        ("launch", "cold", "ours"): [9.0],
    }
)


def test_the_short_table_has_medians_and_ratios_to_the_fork():
    assert format_short(SMALL, SUMMARIES).splitlines() == [
        "|  | ice_notebook | torch spawn | accelerate (fork) |",
        "| --- | --- | --- | --- |",
        "| 6 s after the last launch: first line | 40 ms (0.40 x) | 3.2 s (32 x) | 100 ms |",
        "| a rank fails: first line of the next attempt | 500 ms | > 60.0 s | - |",
        "| private memory of what stands by | 1,040 MiB | - | - |",
    ]


def test_each_row_of_the_short_table_and_each_group_of_the_picture_is_measured():
    measured = {row.key for row in standby.BENCH.rows}
    assert {row.key for row in ROWS} <= measured
    assert {key for key, _ in plot.GROUPS} <= measured
    assert len(standby.BENCH.peers) <= len(plot.COLOURS)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0004, "0 ms"), (0.0656, "66 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (4.21, "4.2 s"), (99.96, "100 s")],
)
def test_a_time_is_said_as_a_person_would(seconds, text):
    assert format_time(seconds) == text


def test_what_stands_between_the_markers_is_replaced_and_nothing_else():
    text = f"# Title\n\n{BEGIN}\nold\n{END}\n\nmore\n"
    once = replace_marked(text, "| new |\n")
    assert once == f"# Title\n\n{BEGIN}\n| new |\n{END}\n\nmore\n"
    assert replace_marked(once, "| new |\n") == once
    assert replace_marked(f"{BEGIN}\n{END}", "new") == f"{BEGIN}\nnew\n{END}"


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END} {BEGIN}", f"{BEGIN} {END} {END}", f"{BEGIN} {BEGIN} {END}"])
def test_a_text_without_a_pair_of_markers_is_refused(text):
    with pytest.raises(ValueError, match="once"):
        replace_marked(text, "new")


def test_the_readme_has_a_place_for_the_table():
    assert BEGIN in replace_marked(README.read_text(encoding="utf-8"), "new")


def test_bars_stand_side_by_side_in_the_groups_that_were_measured():
    assert [key for key, _ in plot.measured_groups(SUMMARIES)] == ["line_6", "restart_10"]
    found = plot.bars(SMALL, SUMMARIES)
    assert list(found) == ["ice_notebook", "torch spawn", "accelerate (fork)"]
    assert [round(bar.at, 6) for bar in found["ice_notebook"]] == [-0.3, 0.7]
    assert [bar.label for bar in found["torch spawn"]] == ["3.2 s", "> 60.0 s"]
    assert found["ice_notebook"][0].whisker == pytest.approx((0.01, 0.01))
    assert found["accelerate (fork)"][0].at == pytest.approx(0.3)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Return a folder in the place of the project's, with pages of one round that have nothing on launches yet."""
    (tmp_path / "page.md").write_text(format_page([], {}, 1))
    (tmp_path / "readme.md").write_text(f"{BEGIN}\n{END}\n")
    monkeypatch.setattr(program, "_PAGE", tmp_path / "page.md")
    monkeypatch.setattr(program, "_README", tmp_path / "readme.md")
    monkeypatch.setattr(program.plot, "draw", lambda bench, summaries, path: (tmp_path / "drawn").write_text(bench.name))
    return tmp_path


def test_the_readme_and_the_picture_are_written_with_the_section_on_launches(written):
    program._write([standby.BENCH], {("standby", "line_6", "ours"): [0.04]}, 1)
    assert f"## {standby.BENCH.title}" in (written / "page.md").read_text()
    assert "| 40 ms | - |" in (written / "readme.md").read_text()
    assert (written / "drawn").read_text() == "standby"


def test_the_readme_stays_as_it_is_when_something_else_was_measured(written):
    program._write([load.BENCH], {("load", "load", "ours"): [0.04]}, 1)
    assert f"## {load.BENCH.title}" in (written / "page.md").read_text()
    assert (written / "readme.md").read_text() == f"{BEGIN}\n{END}\n"
    assert not (written / "drawn").exists()


def test_the_same_values_are_the_same_picture(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a.png", "b.png"):
        plot.draw(SMALL, SUMMARIES, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
