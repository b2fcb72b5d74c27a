"""What the benchmarks say of measured values. Nothing is measured here."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
import sys
import time
import types
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks is no part of the package

from benchmarks import probe, stages, work
from benchmarks.aims import AIMS, Aim
from benchmarks.bench import Bench, Row
from benchmarks.benches import account, panel, standby
from benchmarks.benches.launch import LaunchFailed
from benchmarks.blame import blamed_rank
from benchmarks.figures import Beyond, format_ratio, format_summary, format_words, summarise
from benchmarks.launch_peers import IPYPARALLEL, TORCHRUN
from benchmarks.page import format_machine, format_page, format_table, summaries_of, update_page
from benchmarks.peers import FORKED, PEERS
from benchmarks.session import Cell
from benchmarks.views import VIEWS

OURS, SPAWN, ACCELERATE = PEERS
ROWS = (Row("line", "first line"), Row("blamed", "names", ""), Row("never", "was not measured"))
BENCH = Bench("launch", "Launching", "Two ranks.", ROWS, measure=lambda peer, scratch: {})
MEASURED = {
    ("launch", "line", "ours"): [0.02, 0.01, 0.03],
    ("launch", "line", "spawn"): [2.0, 2.0, Beyond(45.0)],
    ("launch", "line", "accelerate"): [Beyond(45.0), Beyond(45.0), 30.0],
    ("launch", "blamed", "ours"): ["rank 1", "rank 1", "rank 1"],
    ("launch", "blamed", "spawn"): ["rank 0", "rank 1", "rank 1"],
}


def test_a_summary_is_median_least_and_most():
    assert format_summary(summarise([0.3, 0.1, 0.2]), "s") == "0.200 [0.100-0.300]"
    assert format_summary(summarise([0.1, 0.2]), "s") == "0.150 [0.100-0.200]"


def test_a_single_value_has_no_spread():
    assert format_summary(summarise([2.5]), "s") == "2.500"


def test_a_median_that_was_not_reached_is_a_lower_bound():
    assert format_summary(summarise([Beyond(45.0), 30.0, Beyond(45.0)]), "s") == "> 45"
    assert format_summary(summarise([30.0, 31.0, Beyond(45.0)]), "s") == "31.0 [30.0-45.0]"
    assert summarise([30.0, Beyond(45.0)]).is_beyond  # of two values both are in the middle


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "0.012"),
        (12.34, "s", "12.3"),
        (3.21, "ms", "3.2"),
        (321.4, "ms", "321"),
        (0.0, "MiB", "0"),
        (0.5, "MiB", "0.5"),
        (99.99, "%", "99.99"),
        (517.3, "MiB", "517"),
        (203_964.0, "per s", "203,964"),
    ],
)
def test_a_number_is_as_precise_as_its_unit_deserves(value, unit, text):
    assert format_summary(summarise([value]), unit) == text


def test_a_ratio_to_a_peer_that_did_not_end_is_an_upper_bound():
    ours = summarise([0.5])
    assert format_ratio(ours, summarise([2.0])) == "0.25"
    assert format_ratio(ours, summarise([Beyond(45.0)])) == "< 0.011"
    assert format_ratio(summarise([Beyond(45.0)]), ours) == ""


def test_words_that_differ_are_counted():
    assert format_words(["yes", "yes"]) == "yes"
    assert format_words(["no", "yes", "yes"]) == "yes (2 of 3), no (1 of 3)"


def test_a_table_has_every_peer_with_its_ratio_and_no_row_without_a_value():
    assert format_table(BENCH, MEASURED).splitlines() == [
        "|  | ice_notebook | torch spawn | ratio | accelerate (fork) | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
        "| first line, s | 0.020 [0.010-0.030] | 2.000 [2.000-45.0] | 0.01 | > 45 | < 0.00044 |",
        "| names | rank 1 | rank 1 (2 of 3), rank 0 (1 of 3) |  | - |  |",
    ]


def test_an_aim_is_checked_in_units_and_against_a_peer():
    summaries = summaries_of(MEASURED)
    assert Aim("", "launch", "line", 0.01).check(summaries) == ("0.020 s", "≤ 0.010 s", False)
    assert Aim("", "launch", "line", 0.01, at_least=True).check(summaries) == ("0.020 s", "≥ 0.010 s", True)
    assert Aim("", "launch", "line", 1 / 40, of="spawn").check(summaries) == ("0.010 x spawn", "≤ 0.025 x spawn", True)


def test_an_aim_that_was_not_measured_is_not_judged():
    assert Aim("", "launch", "idle", 0.01).check(summaries_of(MEASURED)) is None
    assert Aim("", "launch", "blamed", 0.01).check(summaries_of(MEASURED)) is None


def test_torchs_summary_says_whom_it_blames_whatever_else_is_named():
    error = "rank 0 said\nFailures:\nRoot Cause (first observed failure):\n[0]:\n  time : now\n  rank      : 1 (local_rank: 1)\n"
    assert blamed_rank(error) == "rank 1"
    assert blamed_rank("\x1b[31mRunFailed\x1b[0m: Rank 1 (cpu) failed; rank 0 was stopped") == "rank 1"
    assert blamed_rank("KeyboardInterrupt") == "none"


def test_every_peer_launches_the_same_work():
    source = 'print(f"{word}'
    for peer in (*PEERS, FORKED, IPYPARALLEL):
        cell = peer.launch(work.say_line, ("word-1",))
        assert "'word-1'" in cell
        assert source in cell or "work.say_line)" in cell
    assert OURS.launch(work.say_line, ("w",), group=False).startswith("%%elastic_launch ")


def test_torchrun_gets_the_same_work_as_a_script():
    writing, launching = TORCHRUN.launch(work.say_line, ("word-1",)).splitlines()
    script = ast.literal_eval(writing.partition("write_text(")[2].removesuffix(")"))
    assert inspect.getsource(work.say_line) in script
    assert script.endswith("\nsay_line(*('word-1',))\n")
    assert "torch.distributed.run --standalone --nproc-per-node 2 " in launching


def test_whoever_can_restart_is_asked_for_as_many():
    for peer in (*PEERS, FORKED, TORCHRUN):
        assert re.search(r"max.restarts[ =]2\b", peer.launch(work.fail_once, ("word-1", "/folder", 0.0), max_restarts=2))
    with pytest.raises(NotImplementedError):
        IPYPARALLEL.launch(work.fail_once, ("word-1", "/folder", 0.0), max_restarts=2)


def fail_launches(monkeypatch, *, idle_at):
    def fail(*_, **__):
        raise LaunchFailed("the launch failed", Cell(1000.0, idle_at=idle_at))

    monkeypatch.setattr(standby, "Launch", fail)


def test_a_restart_that_fails_is_told_apart_from_a_launch_that_does(tmp_path, monkeypatch):
    session = types.SimpleNamespace(new_folder=lambda: tmp_path)
    fail_launches(monkeypatch, idle_at=1001.0)
    with pytest.raises(RuntimeError):
        standby._restart(session, OURS, 0.0)
    (tmp_path / "1.json").write_text('{"at": 1000.5}')
    assert standby._restart(session, OURS, 0.0) is None


def test_a_restart_that_hangs_is_no_time_and_the_last(tmp_path, monkeypatch):
    session = types.SimpleNamespace(new_folder=lambda: tmp_path, settle=lambda cell, seconds: cell)
    (tmp_path / "1.json").write_text('{"at": 1000.5}')
    fail_launches(monkeypatch, idle_at=None)
    facts = {row.key: [] for row in standby.BENCH.rows}
    standby._add_restarts(facts, session, OURS)
    assert {key: values for key, values in facts.items() if values} == {"restarts": ["no"]}


def test_the_machine_is_described_without_its_name_or_paths():
    import platform

    text = format_machine(3)
    assert "3 rounds" in text
    assert platform.node() not in text
    assert "/" not in text


FLOOD = Bench("flood", "A flood", "Many lines.", (Row("rate", "lines per second", "per s"),), measure=lambda peer, scratch: {})
FLOODED = {("flood", "rate", "ours"): [120_000.0]}


def test_a_page_is_updated_in_the_sections_that_were_measured_and_their_bounds():
    every = [BENCH, FLOOD]
    flat = {
        ("flood", "rate", "ours"): [90_000.0],
        ("launch", "warm_idle", "ours"): [1.0],
        ("launch", "warm_idle", "accelerate"): [2.0],
    }
    before = format_page(every, {**MEASURED, **flat}, 3)
    after = update_page(before, every, [FLOOD], FLOODED, 3)
    assert after == format_page(every, {**MEASURED, **flat, **FLOODED}, 3)
    assert "90,000" in before
    assert "90,000" not in after
    assert "| next launch, cell idle | 0.500 x accelerate |" in after


def test_a_section_that_is_new_to_a_page_takes_its_place_in_the_order():
    before = format_page([BENCH], MEASURED, 3)
    for every in ([BENCH, FLOOD], [FLOOD, BENCH]):
        assert update_page(before, every, [FLOOD], FLOODED, 3) == format_page(every, {**MEASURED, **FLOODED}, 3)


def test_each_bound_has_a_text_of_its_own_by_which_a_page_knows_it():
    assert len({aim.text for aim in AIMS}) == len(AIMS)


def test_a_page_of_other_rounds_is_not_mixed_with_new_sections():
    with pytest.raises(ValueError, match="3 rounds"):
        update_page(format_page([BENCH], MEASURED, 3), [BENCH, FLOOD], [FLOOD], FLOODED, 2)


def noted(frames, lines=()):
    return {"frames": [1000 * at for at in frames], "lines": [[1000 * drawn, 1000 * printed] for drawn, printed in lines]}


def test_frames_and_gaps_are_those_while_lines_were_printed():
    frames = [8.0, 9.9, *(10 + i / 50 for i in range(50)), 11.5, 15.0]
    found = probe.figures_of(noted(frames), begun=10.0, ended=12.0)
    assert found["frames"] == [51 / 2]
    assert found["gap"] == [pytest.approx(3500)]  # it began while lines were printed
    assert "delay" not in found


def test_a_page_without_a_frame_has_one_gap():
    assert probe.figures_of(noted([9.0, 13.0]), begun=10.0, ended=12.0)["gap"] == [4000.0]
    assert probe.figures_of(noted([]), begun=10.0, ended=12.0)["gap"] == [2000.0]


def test_delays_are_those_of_lines_that_were_printed_in_time_however_late_they_are_drawn():
    lines = [(9.5, 9.0), *((10.1, 10.0) for _ in range(99)), (14.0, 11.0)]
    found = probe.figures_of(noted([10.0], lines), begun=10.0, ended=12.0)
    assert found["delay"] == [pytest.approx(100)]
    assert 100 < found["delay_99"][0] <= 3000
    assert found["last"] == [2.0]


def test_every_view_shows_the_same_work_of_as_many_ranks():
    args = ("/lines", 125.0, 10.0)
    for view in VIEWS:
        assert repr(args) in view.cell(args)
    assert "def talk(" in VIEWS[0].cell(args)
    assert "devices=cpu:0-7" in VIEWS[0].cell(args)


def test_lines_of_a_log_file_count_when_they_are_whole_and_in_order(tmp_path):
    def line(i):
        return f"@1000.123 0 {i:07d} loss 0.4321 ".ljust(93, ".")

    for rank, lines in enumerate([[line(0), line(1), "line" + line(2), line(3)], [line(0), line(1)]]):
        folder = tmp_path / "attempt_0" / str(rank)
        folder.mkdir(parents=True)
        (folder / "output.log").write_text("\n".join(lines))
    assert panel._complete(tmp_path, {0: {"printed": 2}, 1: {"printed": 2}}) == 100
    assert panel._complete(tmp_path, {0: {"printed": 4}, 1: {"printed": 4}}) == 50


def test_the_stages_of_a_launch_add_up_to_the_whole():
    events = [
        {"event": "run_begun", "at": 1000.03},
        {"event": "attempt_begun", "at": 1000.04},
        {"event": "rank_running", "at": 1000.05},
        {"event": "rank_running", "at": 1000.06},
        {"event": "rank_returned", "at": 1000.11},
        {"event": "rank_exited", "at": 1000.12},
        {"event": "run_ended", "at": 1000.13},
    ]
    noted = {"begun": 1000.01, "planned": 1000.02, "loaded": 1000.07, "entered": 1000.08, "met": 1000.09, "returned": 1000.10}
    found = account.stages(1000.0, {**noted, **account.last_moments(events), "known": 1000.14, "idle": 1000.2})
    assert [key for key, _ in found] == [key for key, _ in account.STAGES]
    assert dict(found)["rank_running"] == pytest.approx(20)  # until the slower rank
    assert dict(found)["idle"] == pytest.approx(60)
    assert sum(stage_ms for _, stage_ms in found) == pytest.approx(200)


def test_a_moment_arrives_as_the_time_at_which_it_is_loaded():
    sent = pickle.dumps(stages.Moment())
    before = time.time()
    assert before <= pickle.loads(sent) <= time.time()
