from __future__ import annotations

import random
import re
from html.parser import HTMLParser

import pytest
from histories import History, broken_connection, identity, killed, plan, raised, succeeded

from ice_notebook.runs import report
from ice_notebook.runs.report import STOP_WORDS, failure_lines, format_html, format_text
from ice_notebook.runs.state import RunState
from ice_notebook.wire import protocol as p


def lines(text: str) -> list[str]:
    return text.splitlines()


def failed() -> History:
    """Rank 1 raises; rank 0 is stopped, rank 2 raises as well, rank 3 has returned."""
    history = History(4).begin().returns(3, "{'loss': 0.4}").fails(1).fails(2, raised("KeyError: 'x'", excerpt=None))
    return history.group_fails(1).exits(0, -15).exits(1, 1).exits(2, 1).exits(3, 0).end(p.Outcome.FAILED)


# ---- text ---------------------------------------------------------------------------------------------------------------------------


def test_a_succeeded_run_shows_every_ranks_value_in_order() -> None:
    history = History().begin().returns(1, "{'loss': 0.42}").returns(0, "{'loss': 0.41}").exits(1).exits(0).end()
    assert lines(format_text(plan(), history.state)) == [
        "Run: succeeded · 2 ranks · cpu:0-1 · restarts 0/3",
        "rank 0: {'loss': 0.41}",
        "rank 1: {'loss': 0.42}",
    ]


def test_a_script_is_told_by_its_exit_code_where_it_gave_no_value() -> None:
    state = History(2).begin().succeeds(0).returns(1, "42").exits(1).end().state
    assert format_text(plan(), state).splitlines()[1:] == ["rank 0: exit code 0", "rank 1: 42"]
    state = History(2).begin().succeeds(0).fails(1).group_fails(1).end(p.Outcome.FAILED).state
    assert format_text(plan(), state).splitlines()[-1] == "rank 0: exit code 0"


def test_one_rank_is_one_rank() -> None:
    assert format_text(plan(1), succeeded(["None"]).state) == "Run: succeeded · 1 rank · cpu:0 · restarts 0/3\nrank 0: None"


def test_a_failed_run_shows_the_root_cause_with_the_cells_lines_and_then_the_other_ranks() -> None:
    assert lines(format_text(plan(4), failed().state)) == [
        "Run: failed · 4 ranks · cpu:0-3 · restarts 0/3",
        "rank 1: ValueError: bad loss (cell, line 4)",
        "      1 def train():",
        "      2     for step in range(3):",
        "      3         loss = step",
        '----> 4         raise ValueError("bad loss")',
        "      5     return loss",
        "rank 0: stopped because rank 1 failed",
        "rank 2: also failed: KeyError: 'x' (cell, line 4)",
        "rank 3: returned {'loss': 0.4}",
    ]


def test_a_rank_that_lost_its_connection_reads_like_one_that_was_stopped_first() -> None:
    noticed = History().begin().fails(1).fails(0, broken_connection()).group_fails(1).exits(0, 1).exits(1, 1).end(p.Outcome.FAILED)
    stopped = History().begin().fails(1).group_fails(1).exits(1, 1).exits(0, -9).end(p.Outcome.FAILED)
    assert format_text(plan(), noticed.state) == format_text(plan(), stopped.state)
    assert format_html(plan(), noticed.state, {}) == format_html(plan(), stopped.state, {})
    assert "rank 0: stopped because rank 1 failed" in format_text(plan(), stopped.state)


def test_a_connection_that_broke_first_is_the_cause() -> None:
    history = History().begin().fails(1, broken_connection()).group_fails(1).exits(0, -15).exits(1, 1).end(p.Outcome.FAILED)
    assert lines(format_text(plan(), history.state))[1:] == [
        "rank 1: RuntimeError: Connection closed by peer [127.0.0.1]",
        "rank 0: stopped because rank 1 failed",
    ]


def test_the_cause_is_found_when_the_agent_died_before_it_named_one() -> None:
    history = History(3).begin().fails(0, broken_connection()).fails(2, raised(at=3.0)).fails(1, raised("OSError: no", at=2.0))
    text = format_text(plan(3), history.end(p.Outcome.FAILED, "the agent died").state)
    assert lines(text)[1] == "rank 1: OSError: no (cell, line 4)"


def test_a_run_that_no_rank_failed_says_what_ended_it() -> None:
    state = History().begin().end(p.Outcome.FAILED, "the agent died").state
    assert lines(format_text(plan(), state))[1:] == ["the agent died", "rank 0: stopped", "rank 1: stopped"]
    assert failure_lines(plan(max_restarts=0), state) == ("the agent died", ["", "rank 0: stopped", "rank 1: stopped"])


def test_a_run_that_failed_before_its_ranks_were_started_is_shown() -> None:
    state = History().end(p.Outcome.FAILED, "no rank could be started").state
    assert lines(format_text(plan(), state)) == ["Run: failed · 2 ranks · cpu:0-1 · restarts 0/3", "no rank could be started"]
    assert "no rank could be started" in format_html(plan(), state, {})
    assert failure_lines(plan(max_restarts=0), state) == ("no rank could be started", [])


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("stop", "stopped on request"),
        ("kill", "killed on request"),
        ("interrupt", "stopped by an interrupt"),
        ("kernel gone", "stopped because the kernel ended"),
        ("signal", "stopped by a signal to its agent"),
        ("left", "stopped because this node left the run"),
    ],
)
def test_a_stopped_run_says_who_stopped_it(reason: str, words: str) -> None:
    history = History().begin().returns(1, "7").stop(reason).exits(0, -15).exits(1).end(p.Outcome.STOPPED)
    assert lines(format_text(plan(), history.state)) == [
        "Run: stopped · 2 ranks · cpu:0-1 · restarts 0/3",
        words,
        "rank 0: stopped",
        "rank 1: returned 7",
    ]


def test_there_are_words_for_every_reason() -> None:
    assert set(STOP_WORDS) == set(p.StopReason)
    assert len(set(STOP_WORDS.values())) == len(STOP_WORDS)


def test_how_a_rank_took_being_stopped_does_not_show() -> None:
    quiet = History().begin().stop().exits(0, -15).exits(1, -9).end(p.Outcome.STOPPED)
    noisy = History().begin().stop().fails(0, raised("KeyboardInterrupt")).fails(1, broken_connection())
    noisy = noisy.exits(0, 1).exits(1, 1).end(p.Outcome.STOPPED)
    assert format_text(plan(), quiet.state) == format_text(plan(), noisy.state)
    assert "KeyboardInterrupt" not in format_html(plan(), noisy.state, {})


def test_a_run_whose_time_was_over_says_so() -> None:
    history = History().begin().stop("timeout").fails(0, raised("KeyboardInterrupt")).exits(0, 1).exits(1, -15)
    settled, state = plan(timeout=60.0, max_restarts=0), history.end(p.Outcome.FAILED, "timeout").state
    assert lines(format_text(settled, state))[1:] == ["stopped after timeout=60 s", "rank 0: stopped", "rank 1: stopped"]
    assert failure_lines(settled, state) == ("stopped after timeout=60 s", ["", "rank 0: stopped", "rank 1: stopped"])


def test_restarts_are_told_with_what_failed() -> None:
    history = History().begin().fails(1, killed()).group_fails(1, restarting=True).exits(1, -9).exits(0, -15)
    history.begin().fails(0).group_fails(0, restarting=True).begin().returns(0, "1").returns(1, "2").end()
    assert lines(format_text(plan(), history.state)) == [
        "Run: succeeded · 2 ranks · cpu:0-1 · restarts 2/3",
        "restart 1: rank 1: killed by SIGKILL (signal 9); the system was out of memory",
        "restart 2: rank 0: ValueError: bad loss (cell, line 4)",
        "rank 0: 1",
        "rank 1: 2",
    ]


def test_an_attempt_that_ended_without_a_failure_counts_as_no_restart() -> None:
    history = History().begin(0).exits(0, -15).exits(1, -15).begin(0).returns(0, "1").returns(1, "2").end()
    assert lines(format_text(plan(), history.state))[:2] == ["Run: succeeded · 2 ranks · cpu:0-1 · restarts 0/3", "rank 0: 1"]


def test_a_hundred_restarts_are_counted_and_the_newest_shown() -> None:
    history = History()
    for _ in range(100):
        history.begin().fails(1).group_fails(1, restarting=True)
    text = lines(format_text(plan(max_restarts=200), history.begin().end().state))
    assert text[1] == f"… {100 - report.RESTARTS_SHOWN} earlier restarts"
    assert text[report.RESTARTS_SHOWN + 1].startswith("restart 100: ")


def test_the_lines_of_a_value_stay_below_each_other_and_are_cut() -> None:
    text = format_text(plan(1), succeeded(["tensor([[1, 2],\n        [3, 4]])"]).state)
    assert text.endswith("rank 0: tensor([[1, 2],\n                [3, 4]])")
    many = lines(format_text(plan(1), succeeded(["\n".join(map(str, range(500)))]).state))
    assert many[1:3] == ["rank 0: 0", "        1"]
    assert many[-1] == "        … 480 more lines"


def test_a_value_that_could_not_be_sent_is_told_by_its_sentence() -> None:
    reason = "rank 0's value cannot be sent: it holds an open file."
    history = History().begin().loses(0, reason).loses(1, "No space left for 3 GiB.").exits(0).exits(1).end()
    assert lines(format_text(plan(), history.state))[1:] == [reason, "rank 1: No space left for 3 GiB."]


def test_a_note_of_a_rank_is_told() -> None:
    note = "crashed with SIGABRT after its value was written"
    history = History().begin().returns(0, "1").returns(1, "2").exits(0).exits(1, -6, note).end()
    assert lines(format_text(plan(), history.state))[-2:] == ["rank 1: 2", f"rank 1: {note}"]


def test_what_is_missing_in_the_log_files_is_told_however_the_run_ended() -> None:
    missing = "rank 1: 7.15 MiB of its output is missing in its log file: No space left on device"
    history = History().begin().loses_output(1, 10).loses_output(1, 7_500_000).returns(0, "1").returns(1, "2").end()
    assert format_text(plan(2, max_restarts=0), history.state).splitlines()[-1] == missing
    assert missing in format_html(plan(), history.state, {})

    failed = History().begin().loses_output(1, 7_500_000).fails(1).group_fails(1, restarting=True).begin().fails(0).group_fails(0)
    failed.end(p.Outcome.FAILED)
    missing = missing.replace("rank 1:", "rank 1 of attempt 1:")
    assert missing in format_text(plan(), failed.state).splitlines()
    assert missing in failure_lines(plan(), failed.state)[1]


def test_what_runs_shows_a_title_that_does_not_depend_on_the_moment() -> None:
    started = History().begin(running=False)
    running = History().begin().returns(0, "1")
    text = "Run: running · 2 ranks · cpu:0-1 · restarts 0/3"
    assert format_text(plan(), RunState()) == format_text(plan(), started.state) == format_text(plan(), running.state) == text
    assert format_html(plan(), RunState(), {}) == format_html(plan(), running.state, {0: ["a line"]})
    assert format_text(plan(), running.stop().state).startswith("Run: stopping · ")


def test_a_thousand_ranks_are_counted_and_the_first_shown() -> None:
    history = succeeded(["1"] * 1000)
    text = lines(format_text(plan(1000), history.state))
    assert len(text) == report.RANKS_SHOWN + 2
    assert text[-1] == "… 936 more ranks"


# ---- the cell's error ---------------------------------------------------------------------------------------------------------------


def test_the_error_shows_the_root_ranks_traceback_then_the_other_ranks_then_the_restarts() -> None:
    headline, shown = failure_lines(plan(4), failed().state)
    assert headline == "rank 1: ValueError: bad loss (cell, line 4)"
    assert shown == [
        "",
        "Traceback of rank 1 (most recent call last):",
        "  Cell In[4], line 1",
        "    train()",
        "  Cell In[3], line 4, in train",
        "      1 def train():",
        "      2     for step in range(3):",
        "      3         loss = step",
        '----> 4         raise ValueError("bad loss")',
        "      5     return loss",
        "  torch.nn.functional:3494, in cross_entropy",
        "ValueError: bad loss",
        "",
        "rank 0: stopped because rank 1 failed",
        "rank 2: also failed: KeyError: 'x' (cell, line 4)",
        "rank 3: returned {'loss': 0.4}",
        "",
        "restarts used: 0 of 3",
    ]


def test_the_error_of_a_recursion_shows_its_gap() -> None:
    gap = p.TracebackFrame(where="… 960 frames not shown …", line=0, function="", is_users=False)
    history = History(1).begin().fails(0, raised(frames=(gap,), excerpt=None)).group_fails(0).end(p.Outcome.FAILED)
    headline, shown = failure_lines(plan(1, max_restarts=0), history.state)
    assert headline == "rank 0: ValueError: bad loss"
    assert "  … 960 frames not shown …" in shown


def test_a_killed_rank_is_told_by_its_headline() -> None:
    history = History().begin().fails(1, killed()).group_fails(1).exits(1, -9).exits(0, -15).end(p.Outcome.FAILED)
    headline, shown = failure_lines(plan(max_restarts=0), history.state)
    assert headline == "rank 1: killed by SIGKILL (signal 9); the system was out of memory"
    assert shown == ["", "rank 0: stopped because rank 1 failed"]


def test_a_crash_shows_the_line_of_the_cell_that_crashed() -> None:
    crash = p.Failure(kind="signal", headline="killed by SIGSEGV (signal 11)", excerpt=raised().excerpt, exit_code=-11)
    history = History(1).begin().fails(0, crash).group_fails(0).exits(0, -11).end(p.Outcome.FAILED)
    headline, shown = failure_lines(plan(1), history.state)
    assert headline == "rank 0: killed by SIGSEGV (signal 11) (cell, line 4)"
    assert '----> 4         raise ValueError("bad loss")' in shown
    assert "restarts used: 0 of 3" in shown


def test_the_marker_keeps_its_column_for_long_numbers() -> None:
    excerpt = p.Excerpt(where="Cell In[3]", first=99, lines=("a = 1", "", "b = 2"), failing=101)
    history = History(1).begin().fails(0, raised(excerpt=excerpt)).group_fails(0).end(p.Outcome.FAILED)
    assert lines(format_text(plan(1), history.state))[2:5] == ["     99 a = 1", "    100", "--> 101 b = 2"]


# ---- the page -----------------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The elements and the text of a page; fails when they are not balanced."""

    VOID = frozenset({"img", "br", "hr", "wbr"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] != "style":
            self.text += data


def test_the_page_hides_itself_while_a_panel_lives_in_the_same_output() -> None:
    source = format_html(plan(), succeeded(["1", "2"]).state, {})
    assert source.startswith('<div class="ice-report"><style>')
    for rule in (
        ".jp-OutputArea:has(.ice-live) > .jp-OutputArea-child:has(.ice-report),",
        ".output:has(.ice-live) > .output_area:has(.ice-report) { display: none }",
        ".jp-OutputArea:has(.ice-report) > .jp-OutputArea-child > .jp-OutputArea-output.jupyter-widgets { display: none }",
    ):
        assert rule in source
    assert not re.search(r":has\([^)]*:has", source)


def test_the_page_has_title_table_results_and_last_lines() -> None:
    page = Page(
        format_html(plan(), succeeded(["{'loss': 0.41}", "<b>7</b>"]).state, {0: ["epoch 1", "epoch \x1b[31m2\x1b[0m"], 1: []})
    )
    assert "Run: succeeded · train(launcher) · 2 ranks · cpu:0-1 · restarts 0/3" in page.text
    assert "rankdevicestateexit0cpu:0returned01cpu:1returned0" in page.text
    assert "rank 0 returned dict{'loss': 0.41}rank 1 returned dict<b>7</b>" in page.text
    assert page.text.endswith("last lines of rank 0epoch 1\nepoch 2")
    assert page.elements.count("details") == 1


def test_only_the_last_20_lines_of_a_rank_are_shown() -> None:
    source = format_html(plan(1), succeeded(["1"]).state, {0: [f"line {n}" for n in range(50)]})
    assert "line 29" not in source
    assert "line 30\nline 31" in source
    assert source.rstrip().endswith("line 49</pre></details></div>")


def test_the_number_of_a_cell_stands_in_its_error_only() -> None:
    def at(number: int) -> p.Failure:
        frame = p.TracebackFrame(where=f"Cell In[{number}]", line=4, function="train", source="raise ValueError")
        return raised(frames=(frame,), excerpt=p.Excerpt(where=frame.where, first=4, lines=("raise ValueError",), failing=4))

    states = [
        History().begin().fails(1, at(n)).group_fails(1).exits(0, -15).exits(1, 1).end(p.Outcome.FAILED).state for n in (3, 70)
    ]
    assert len({format_text(plan(), state) for state in states}) == 1
    assert len({format_html(plan(), state, {}) for state in states}) == 1
    (headline, below), (other_headline, _) = (failure_lines(plan(), state) for state in states)
    assert headline == other_headline == "rank 1: ValueError: bad loss (cell, line 4)"
    assert "  Cell In[3], line 4, in train" in below


def test_the_last_lines_are_those_before_the_printed_traceback() -> None:
    failure = broken_connection()
    printed = failure.traceback.rstrip().splitlines()
    noticed = History().begin().fails(1).fails(0, failure).group_fails(1).exits(0, 1).exits(1, 1).end(p.Outcome.FAILED).state
    stopped = History().begin().fails(1).group_fails(1).exits(1, -15).exits(0, -15).end(p.Outcome.FAILED).state
    output = [f"step {n}" for n in range(30)]
    page = format_html(plan(), noticed, {0: [*output, *printed, "a word at the end"]})
    assert page == format_html(plan(), stopped, {0: output})
    assert page == format_html(plan(), noticed, {0: [*output[:-1], output[-1] + printed[0], *printed[1:]]})
    assert page == format_html(plan(), noticed, {0: [*output, *printed[1:]]})
    assert report.lines_wanted(noticed.ranks[0]) >= report.TAIL_LINES + len(printed)


def test_the_page_of_a_failed_run_shows_the_cells_lines_and_marks_the_failing_one() -> None:
    source = format_html(plan(4), failed().state, {})
    page = Page(source)
    assert "rank 1: ValueError: bad loss (cell, line 4)" in page.text
    assert '<span class="ice-failing">----&gt; 4         raise ValueError(&quot;bad loss&quot;)</span>' in source
    assert source.count('class="ice-failing"') == 1
    assert "torch.nn.functional:3494, in cross_entropy" in page.text
    assert "1cpu:1failed1" in page.text
    assert "0cpu:0stopped2cpu:2" not in page.text
    assert "0cpu:0stopped1cpu:1" in page.text  # which signal ended rank 0 is a matter of chance


def test_the_page_shows_the_restarts() -> None:
    history = History().begin().fails(1).group_fails(1, restarting=True).begin().returns(0, "1").returns(1, "2").end()
    assert "restart 1: rank 1: ValueError: bad loss" in format_html(plan(), history.state, {})


def test_a_value_that_draws_itself_as_a_table_stays_one() -> None:
    table = "<table><tbody><tr><td>0.5</td></tr></tbody></table>"
    history = History(1).begin().returns(0, "frame", table, "DataFrame").exits(0).end()
    source = format_html(plan(1), history.state, {})
    assert f"<div>{table}</div>" in source
    assert "frame" not in Page(source).text.replace("DataFrame", "")


@pytest.mark.parametrize(
    "drawn",
    [
        "<script>parent.document.body.remove()</script>x",
        "</div></div><script>1</script>",
        "<b onmouseover='alert(1)'>x</b></div></div></td></table>",
        "<div class='ice-live'>x",
        "<style>* { display: none }</style>x",
        "<a href='javascript:1'>x</a><img src=//elsewhere/x.png>",
        "<iframe src='https://elsewhere'></iframe>",
    ],
)
def test_a_value_cannot_reach_out_of_its_place(drawn: str) -> None:
    source = format_html(plan(1), History(1).begin().returns(0, "the text", drawn).exits(0).end().state, {})
    page = Page(source)
    assert page.elements.count("style") == 1
    assert not {"script", "iframe", "a", "img", "link"} & set(page.elements)
    assert {name for name, _ in page.attributes} <= {"class", "colspan"}
    assert "ice-live" not in str(page.attributes)


def test_everything_that_a_rank_says_is_escaped() -> None:
    evil = "</pre></div><script>alert(1)</script>"
    failure = raised(
        f"ValueError: {evil}",
        frames=(p.TracebackFrame(where=evil, line=1, function=evil, source=evil),),
        excerpt=p.Excerpt(where=evil, first=1, lines=(evil,), failing=1),
    )
    history = History(3).begin().fails(0, failure).group_fails(0, restarting=True).exits(0, 1, evil)
    history.begin().fails(0, failure).fails(1, failure).group_fails(0).exits(0, 1, evil).loses(2, evil)
    source = format_html(plan(3, name=evil, devices=evil), history.end(p.Outcome.FAILED, evil).state, {0: [evil]})
    page = Page(source)
    assert "script" not in page.elements
    assert page.text.count("alert(1)") > 8


@pytest.mark.parametrize(
    "trick",
    [
        "\x1b[31m",
        "\x1b[?1000h",
        "\x9b2J",
        "\x1b]52;c;SGVsbG8=\x07",
        "\x9d52;c;SGVsbG8=\x9c",
        "\x1b]0;title\x1b\\",
        "\x90q\x9c",
        "\x1b_G\x1b\\",
        "\x85\x84\x1bE",
        "\u202e\u2066\u2069\u202c",
        "\x07\x08\r",
    ],
)
def test_nothing_of_an_exceptions_words_steers_a_terminal_or_a_page(trick):
    history = History(1).begin().fails(0, raised(f"ValueError: bad {trick}loss")).group_fails(0).end(p.Outcome.FAILED)
    assert report.failure_sentence(0, history.state.ranks[0].failure) == "rank 0: ValueError: bad loss (cell, line 4)"
    for text in (format_text(plan(1), history.state), str(failure_lines(plan(1), history.state))):
        assert "bad loss" in text
        assert not any(character in text for character in trick if not character.isprintable())


@pytest.mark.parametrize("character", ["x", '"', "🏖", "\x1b[31m", "\n"])
@pytest.mark.parametrize("world_size", [1, 4, 70])
def test_the_page_stays_below_100_kb_however_large_the_input(character: str, world_size: int) -> None:
    huge = character * 11_000
    failure = raised(
        huge,
        frames=tuple(p.TracebackFrame(where=huge, line=n, function=huge, source=huge) for n in range(60)),
        excerpt=p.Excerpt(where=huge, first=1, lines=(huge,) * 5, failing=3),
    )
    history = History(world_size)
    for _ in range(3):
        history.begin(running=False).fails(0, failure).group_fails(0, restarting=True)
    history.begin(running=False).fails(0, failure).group_fails(0)
    for rank in range(1, world_size):
        table = f"<table><tr><td>{'y' * 12_000}</td></tr></table>"
        history = history.returns(rank, huge, table, huge) if rank % 2 else history.loses(rank, huge)
        history.exits(rank, 0, huge)
    tails = {rank: [huge] * 30 for rank in range(world_size)}
    source = format_html(plan(world_size, name=huge, devices=huge), history.end(p.Outcome.FAILED, huge).state, tails)
    assert len(source.encode()) <= report.REPORT_BYTES
    Page(source)


def test_results_of_10_kb_are_shown_and_larger_ones_cut() -> None:
    source = format_html(plan(3), succeeded(["a" * 9_990, "b" * 50_000, "c" * 10]).state, {})
    assert "a" * 9_990 in source
    assert report.VALUE_BYTES - 10 < max(map(len, re.findall("b+", source))) < report.VALUE_BYTES
    assert "c" * 10 in source


# ---- the same words for the same end ------------------------------------------------------------------------------------------------


def test_no_times_pids_ids_or_paths_appear_and_the_order_of_events_does_not_show() -> None:
    shown = set()
    for seed in range(20):
        random.seed(seed)
        history = History(3, start=1_600_000_000.0 + 7919 * seed)
        history.add(p.RunBegun, agent=identity(1000 + seed, 5 + seed))
        history.begin(running=False)
        for rank in random.sample(range(3), 3):
            history.add(p.RankRunning, attempt=0, rank=rank)
        history.fails(1, raised(traceback=f"at {seed}", at=seed * 1.0))
        for rank in random.sample((0, 2), 2):
            if random.random() < 0.5:
                history.fails(rank, broken_connection())
        history.group_fails(1)
        for rank in random.sample(range(3), 3):
            history.exits(rank, 1 if rank == 1 else random.choice([1, -15, -9]))
        state = history.end(p.Outcome.FAILED).state
        settled = plan(3, run_id=f"run{seed}", kernel_pid=seed, folder=f"/tmp/{seed}", cwd=f"/home/{seed}")
        shown.add((format_text(settled, state), format_html(settled, state, {}), str(failure_lines(settled, state))))
    assert len(shown) == 1
    assert not re.search(r"/home|/tmp|/dev/shm|3f9c2a7d|\b90\d\d\b|1[67]\d{8}", str(shown))


def test_a_run_whose_agent_could_not_go_on_after_a_failure_tells_both() -> None:
    history = History().begin().fails(0).group_fails(0, restarting=True).exits(0, 1).exits(1, -15)
    state = history.end(p.Outcome.FAILED, "the port 4711 on 127.0.0.1 cannot be used: Address already in use").state
    headline, _ = failure_lines(plan(), state)
    assert headline.startswith("rank 0: ValueError: bad loss")
    assert headline.endswith("; then the port 4711 on 127.0.0.1 cannot be used: Address already in use")
