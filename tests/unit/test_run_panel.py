"""The run panel without a browser: what it sends is recorded, the page's replies are played."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from fake_run import FAILURE, FakeRun, begun, failed, make_plan, out, returned, value
from recorded_comms import record_comms
from support import wait_until

from ice_notebook.runs.log_files import Hit
from ice_notebook.runs.state import RunState, replay
from ice_notebook.ui.widgets import run_panel
from ice_notebook.ui.widgets.kernel import keep_subshell, kernel_id
from ice_notebook.ui.widgets.panel_state import banner, format_duration, snapshot
from ice_notebook.ui.widgets.run_panel import RunPanel
from ice_notebook.wire import protocol as p


class Page:
    """What one page hears and says."""

    def __init__(self, panel: RunPanel) -> None:
        self.panel = panel
        self.comm = panel.comm

    def heard(self) -> list[dict]:
        """Return what came since the last call: states as {"kind": "state"}, lines joined in."""
        found = []
        for _, data, buffers in self.comm.sent:
            if data.get("method") == "update":
                found.append({"kind": "state", **data["state"]["state"]})
            elif data.get("method") == "custom":
                content = dict(data["content"])
                if "parts" in content:
                    content["lines"] = {}
                    lines = iter(buffers[0].decode().split("\n") if buffers else [])
                    for rank, first, n in content["parts"]:
                        content["lines"] |= {(rank, first + i): next(lines) for i in range(n)}
                    assert next(lines, None) is None
                found.append(content)
        self.comm.sent.clear()
        return found

    def says(self, **content) -> None:
        self.panel._handle_msg({"content": {"data": {"method": "custom", "content": content}}, "buffers": []})


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

        def time(self):
            return 1_000_000.0 + self.now

    clock = Clock()
    monkeypatch.setattr(run_panel, "time", clock)
    return clock


@pytest.fixture
def opened(monkeypatch, clock):
    record_comms(monkeypatch)
    panels = []

    def open_panel(script=(), **how):
        plan = how.pop("plan", None)
        run = FakeRun(plan=plan)
        run.play(script)
        panel = RunPanel(run, **how)
        panels.append(panel)
        page = Page(panel)
        return run, panel, page

    yield open_panel
    for panel in panels:
        panel.close()


def kinds(messages):
    return [message["kind"] for message in messages]


# ---- what it sends


def test_the_first_message_draws_the_whole_panel(opened):
    page = opened(begun(2))[2]
    (kind, data, _) = page.comm.sent[0]
    state = data["state"]["state"]
    assert kind == "comm_open"
    assert (state["phase"], state["name"], state["rev"]) == ("running", "train", 1)
    assert [(rank["rank"], rank["device"], rank["phase"]) for rank in state["ranks"]] == [
        (0, "cpu:0", "running"),
        (1, "cpu:1", "running"),
    ]
    json.dumps(state)
    assert "is_final" in state


def test_ranks_are_shown_before_anything_started(opened):
    _, panel, _ = opened(plan=make_plan(3))
    assert [rank["phase"] for rank in panel.state["ranks"]] == ["starting"] * 3
    assert panel.state["began_at"] == pytest.approx(1_000_100.0)


def test_a_change_of_state_is_one_message_with_the_next_revision(opened):
    run, panel, page = opened()
    page.heard()
    run.play(begun(2))
    panel.update()
    assert [(m["kind"], m["rev"]) for m in page.heard()] == [("state", 2)]
    panel.update()
    assert page.heard() == []


def test_output_of_all_ranks_is_one_numbered_message(opened):
    run, panel, page = opened(begun(2))
    page.heard()
    run.play([out(0, "a\nb\n"), out(1, "ü\n")])
    panel.update()
    run.play([out(0, "c\n")])
    panel.update()
    first, second = page.heard()
    assert (first["kind"], first["seq"], first["lines"]) == ("output", 1, {(0, 0): "a", (0, 1): "b", (1, 0): "ü"})
    assert (second["seq"], second["lines"]) == (2, {(0, 2): "c"})


def test_skipped_output_is_a_gap_in_the_numbers(opened):
    run, panel, page = opened(begun(1))
    page.heard()
    run.play([out(0, "x\n" * 1000)])
    panel.update()
    (message,) = page.heard()
    assert [(rank, first, n) for rank, first, n in message["parts"]] == [(0, 800, 200)]


def test_a_page_gets_one_message_of_a_kind_an_update_however_much_has_come(opened, clock):
    run, panel, page = opened(begun(2))
    page.heard()
    for tick in range(20):  # two seconds
        run.play([out(0, "x\n" * 5000), out(1, f"\r{tick}%")])
        run.play([p.RankRunning(at=1.0, attempt=0, rank=0), p.RankReturned(at=1.0, attempt=0, rank=0, value=value(str(tick)))])
        panel.update()
        clock.now += 0.1
        kinds = [message["kind"] for message in page.heard()]
        assert sorted(set(kinds)) == sorted(kinds), kinds


def test_without_news_there_is_a_beat_a_second(opened, clock):
    _, panel, page = opened(begun(1))
    page.says(kind="hello", tab="t", rev=1, have={})
    page.heard()
    again = panel.update()
    assert page.heard() == []
    assert again == pytest.approx(1.0)
    clock.now += again
    again = panel.update()
    (beat,) = page.heard()
    assert (beat["kind"], beat["rev"], beat["seq"], beat["now"]) == ("beat", 1, 0, clock.time())
    assert again == pytest.approx(1.0)


def test_a_page_that_never_speaks_is_told_everything_anyway(opened, clock):
    run, panel, page = opened(begun(1))
    run.play([out(0, "early\n")])
    panel.update()
    page.heard()
    replays = []
    for _ in range(60):
        clock.now += 0.1
        panel.update()
        replays += [m for m in page.heard() if m["kind"] == "replay"]
    assert [m["lines"] for m in replays] == [{(0, 0): "early"}] * 3
    assert all(m["tab"] == "" for m in replays)


def test_the_final_state_is_sent_again_until_a_page_has_confirmed_it(opened, clock):
    run, panel, page = opened(begun(1))
    run.play(returned([value("1", "int")]))
    again = panel.update()
    assert [m["phase"] for m in page.heard()] == ["succeeded"]
    times = [clock.now]
    while again is not None:
        clock.now += again
        again = panel.update()
        times += [clock.now] * kinds(page.heard()).count("state")
    assert [round(t - 100, 2) for t in times] == [0, 0.3, 1.0, 4.0]


def test_a_confirmed_final_state_is_not_sent_again(opened, clock):
    run, panel, page = opened(begun(1))
    run.play(returned([value("1", "int")]))
    again = panel.update()
    (state,) = page.heard()
    page.says(kind="seen", rev=state["rev"])
    clock.now += again
    assert panel.update() is None
    assert page.heard() == []


def test_the_last_output_precedes_the_final_state(opened):
    run, panel, page = opened(begun(1))
    page.heard()
    run.play([out(0, "last words\n"), *returned([value("1")])])
    panel.update()
    output, state = page.heard()
    assert (output["kind"], output["seq"], state["seq"], state["is_final"]) == ("output", 1, 1, True)


def test_the_panel_does_not_keep_an_ended_run(opened):
    run, panel, _ = opened(begun(1))
    run.play(returned([value("1")]))
    panel.update()
    assert run not in vars(panel).values()
    assert panel.state["phase"] == "succeeded"


# ---- what it hears


def test_hello_is_answered_with_what_the_page_lacks(opened):
    run, panel, page = opened(begun(2))
    run.play([out(0, "a\nb\n"), out(1, "c\n")])
    panel.update()
    page.heard()
    page.says(kind="hello", tab="t1", rev=panel.state["rev"], have={"0": 1})
    (answer,) = page.heard()
    assert (answer["kind"], answer["tab"], answer["seq"], answer["lines"]) == ("replay", "t1", 1, {(0, 1): "b", (1, 0): "c"})


def test_hello_of_an_old_page_is_answered_with_the_state_too(opened):
    page = opened(begun(2))[2]
    page.heard()
    page.says(kind="hello", tab="t1", rev=0, have={})
    assert kinds(page.heard()) == ["state", "replay"]


def test_hello_is_answered_after_the_end(opened):
    run, panel, page = opened(begun(1))
    run.play([out(0, "a\n"), *returned([value("1")])])
    panel.update()
    page.heard()
    page.says(kind="hello", tab="t2", rev=0, have={})
    state, answer = page.heard()
    assert (state["phase"], answer["lines"]) == ("succeeded", {(0, 0): "a"})


def test_hellos_that_were_held_up_together_are_answered_once(opened, clock):
    page = opened(begun(1))[2]
    page.heard()
    for _ in range(5):
        page.says(kind="hello", tab="t", rev=1, have={})
    page.says(kind="hello", tab="other", rev=1, have={})
    assert [m["tab"] for m in page.heard()] == ["t", "other"]
    clock.now += 0.3
    page.says(kind="hello", tab="t", rev=1, have={})
    assert len(page.heard()) == 1


def test_a_press_stops_the_run_once_and_is_acknowledged_at_once(opened, clock):
    run, panel, page = opened(begun(1))
    page.heard()
    assert panel.stop_pressed_at is None
    clock.now = 123.0
    for _ in range(3):
        page.says(kind="press", op="stop", nonce="n1")
    assert [name for name, _ in run.calls] == ["stop"]
    assert [m["acks"] for m in page.heard()] == [["n1"]]
    assert panel.stop_pressed_at == 123.0


def test_the_second_press_kills(opened):
    run, _, page = opened(begun(1))
    page.says(kind="press", op="stop", nonce="n1")
    page.says(kind="press", op="kill", nonce="n2")
    page.says(kind="press", op="stop", nonce="n1")
    assert [name for name, _ in run.calls] == ["stop", "kill"]


def test_a_press_in_a_second_tab_does_not_kill(opened):
    run, _, page = opened(begun(1))
    page.says(kind="press", op="stop", nonce="tab1")
    page.says(kind="press", op="stop", nonce="tab2")
    assert [name for name, _ in run.calls] == ["stop", "stop"]


def test_a_press_after_the_end_does_nothing(opened):
    run, panel, page = opened(begun(1))
    run.play(returned([value("1")]))
    panel.update()
    page.heard()
    page.says(kind="press", op="stop", nonce="late")
    assert run.calls == []
    assert page.heard()[0]["acks"] == ["late"]
    assert panel.stop_pressed_at is None


def test_an_interrupt_right_after_a_press_is_that_press_once(opened, clock):
    _, panel, page = opened(begun(1))
    assert not panel.is_echo_of_press()
    page.says(kind="press", op="stop", nonce="n1")
    clock.now += 0.8
    assert [panel.is_echo_of_press(), panel.is_echo_of_press()] == [True, False]
    page.says(kind="press", op="kill", nonce="n2")
    clock.now += 5
    assert not panel.is_echo_of_press()


def test_an_error_in_a_handler_is_shown_in_the_panel(opened):
    run, _, page = opened(begun(1))
    page.heard()

    def stop():
        raise OSError("the socket is closed")

    run.stop = stop
    page.says(kind="press", op="stop", nonce="n1")
    problem = page.heard()[-1]["problems"][0]
    assert problem.startswith("OSError: the socket is closed (test_run_panel.py, line ")
    page.says(kind="nonsense")
    assert page.heard()[-1]["problems"][1].startswith("KeyError: 'nonsense'")


def test_an_error_in_an_update_is_shown_once_and_does_not_reach_the_runs_thread(opened, monkeypatch):
    run, panel, page = opened(begun(1))
    page.heard()

    def broken(*_):
        raise ValueError("no snapshot")

    monkeypatch.setattr(run_panel, "snapshot", broken)
    assert panel.update() == 1.0
    assert panel.update() == 1.0
    (state,) = page.heard()
    assert state["problems"][0].startswith("ValueError: no snapshot")
    monkeypatch.undo()
    panel.comm.sent.clear()
    run.play(returned([value("1")]))
    panel.update()
    assert page.heard()[-1]["phase"] == "succeeded"


# ---- what it is


def test_its_text_is_constant(opened):
    run, panel, _ = opened(begun(2))
    before = panel._repr_mimebundle_()[0]["text/plain"]
    run.play(returned([value("1"), value("2")]))
    panel.update()
    assert before == repr(panel) == panel._repr_mimebundle_()[0]["text/plain"] == "RunPanel(train, 2 ranks)"
    assert repr(opened(plan=make_plan(1, name="evaluate"))[1]) == "RunPanel(evaluate, 1 rank)"


def test_cell_waits_is_told_to_the_page(opened):
    _, panel, page = opened(cell_waits=False)
    assert panel.state["cell_waits"] is False
    page.heard()
    panel.cell_waits = True
    panel.update()
    assert page.heard()[0]["cell_waits"] is True


def test_the_script_is_small_and_reaches_nowhere():
    folder = Path(run_panel.__file__).parent
    script, style = ((folder / f"run_panel.{kind}").read_text() for kind in ("js", "css"))
    for text in (script, style):
        assert "http:" not in text
        assert "https:" not in text
        assert "@import" not in text
    assert "innerHTML" not in script
    assert script.startswith("// @ts-check")


def test_the_click_repair_is_harmless_where_it_is_not_needed():
    class Old:
        pass

    class New:
        def _reply_subshell_for(self, data, default):
            return "main"

    old, new = Old(), New()
    keep_subshell(old)
    keep_subshell(None)
    keep_subshell(new)
    assert vars(old) == {}
    assert new._reply_subshell_for({"content": {}}, "subshell-1") == "subshell-1"


def test_the_click_repair_fits_the_installed_ipykernel():
    from ipykernel.comm import comm as comms

    KernelComm = getattr(comms, "BaseComm", comms.Comm)
    comm_ = KernelComm.__new__(KernelComm)
    keep_subshell(comm_)
    if hasattr(KernelComm, "_reply_subshell_for"):
        assert comm_._reply_subshell_for({}, "chosen") == "chosen"


def test_there_is_no_kernel_id_outside_a_kernel():
    assert kernel_id() == ""


# ---- snapshot


def test_a_failure_names_the_root_first_with_its_lines():
    state = replay([*begun(3), *failed(3, root=1, echo=0)])
    found = snapshot(make_plan(3), state, Path("/runs/x"))
    root, echo = found["failures"]
    assert (root["rank"], root["headline"], root["exit"]) == (1, "ZeroDivisionError: division by zero", "exit code 1")
    assert root["excerpt"]["failing"] == 9
    assert root["traceback"] == FAILURE.traceback
    assert (echo["rank"], echo["is_communication"], "traceback" in echo) == (0, True, False)
    assert found["banner"] == {"kind": "failed", "text": "Rank 1 (cpu:1) failed: ZeroDivisionError: division by zero."}
    assert [(rank["phase"], rank["note"]) for rank in found["ranks"]] == [("stopped", ""), ("failed", "exit 1"), ("stopped", "")]
    assert [rank["said"] for rank in found["ranks"]] == [echo["headline"], root["headline"], ""]
    assert found["ended_with_it"] == [0, 2]
    assert found["folder"] == "/runs/x"


def test_what_standby_ranks_had_imported_is_told_when_that_saved_something():
    spared = p.replace(make_plan(2), preloaded={"sympy": 0.4, "torchvision": 1.3, "tqdm": 0.19})
    assert (
        snapshot(spared, replay(begun(2)), Path())["devices"] == f"{spared.devices} · torchvision and sympy preloaded, 1.7 s saved"
    )
    little = p.replace(spared, preloaded={"tqdm": 0.19})
    assert snapshot(little, replay(begun(2)), Path())["devices"] == little.devices


def test_a_signal_is_named():
    events = [
        *begun(1),
        p.RankFailed(at=1.0, attempt=0, rank=0, failure=p.Failure(kind="signal", headline="died of SIGSEGV", exit_code=-11)),
    ]
    assert snapshot(make_plan(1), replay(events), Path())["ranks"][0]["note"] == "SIGSEGV"


@pytest.mark.parametrize(
    ("events", "kind", "text"),
    [
        (begun(2), None, ""),
        (
            [*begun(2), *failed(2, restarting=True)],
            "restarting",
            "Rank 1 (cpu:1) left after 41 s: ZeroDivisionError: division by zero. All ranks are started again.",
        ),
        (
            [*begun(2), *failed(2, restarting=True), *begun(2, attempt=1)],
            "restarting",
            "Attempt 2: rank 1 (cpu:1) left after 41 s: ZeroDivisionError: division by zero. All ranks were started again.",
        ),
        (
            [*begun(2), *failed(2, restarting=True), *begun(2, attempt=1), *returned([value("1")], attempt=1)],
            "restarted",
            "It took 2 attempts. Rank 1 (cpu:1) left after 41 s: ZeroDivisionError: division by zero.",
        ),
        ([*begun(2), p.StopAsked(at=1.0, reason=p.StopReason.STOP)], "stopping", "Stopping: ranks have up to 5 s to finish."),
        ([*begun(2), p.StopAsked(at=1.0, reason=p.StopReason.KILL)], "stopping", "Stopping: all ranks are being ended now."),
        (
            [*begun(2), p.StopAsked(at=1.0, reason=p.StopReason.INTERRUPT), p.RunEnded(at=2.0, outcome=p.Outcome.STOPPED)],
            "stopped",
            "Stopped by an interrupt.",
        ),
        ([*begun(2), p.RunEnded(at=2.0, outcome=p.Outcome.FAILED, reason="the agent died")], "failed", "The agent died."),
        (
            [*begun(2), p.OutputLost(at=1.0, attempt=0, rank=1, size_bytes=3 << 20, reason="No space left on device")],
            "lost",
            "Rank 1: 3 MiB of its output is missing in its log file: No space left on device.",
        ),
        (
            [
                *begun(2),
                p.OutputLost(at=1.0, attempt=0, rank=0, size_bytes=9, reason="No space left on device"),
                p.RunEnded(at=2.0, outcome=p.Outcome.FAILED, reason="the agent died"),
            ],
            "failed",
            "The agent died.\nRank 0: 9 B of its output is missing in its log file: No space left on device.",
        ),
    ],
)
def test_the_banner_says_what_stands_out(events, kind, text):
    found = banner(make_plan(2), replay(events))
    assert (found and found["kind"], found["text"] if found else "") == (kind, text)


def test_values_are_bounded_and_say_where_they_were_cut():
    values = [value("v" * 100_000, html="<b>" * 20_000) for _ in range(8)]
    found = snapshot(make_plan(8), replay([*begun(8), *returned(values)]), Path())["results"]
    assert len(found) == 8
    assert all(result["text"].endswith("…") for result in found)
    assert len(json.dumps(found)) < 300_000


def test_a_lost_value_says_why():
    events = [*begun(1), p.ValueLost(at=1.0, attempt=0, rank=0, reason="rank 0 returned a lock, which cannot be pickled")]
    assert snapshot(make_plan(1), replay(events), Path())["results"] == [
        {"rank": 0, "lost": "rank 0 returned a lock, which cannot be pickled"},
    ]


def test_devices_that_were_picked_are_told_as_such():
    assert snapshot(make_plan(2), RunState(), Path("/x"))["devices"] == "cpu:0-1"
    assert snapshot(make_plan(2, devices_by="picked"), RunState(), Path("/x"))["devices"] == "cpu:0-1 (picked)"


def test_a_snapshot_is_a_function_of_the_state():
    state = replay([*begun(2), *failed(2)])
    assert snapshot(make_plan(2), state, Path("/x")) == snapshot(make_plan(2), state, Path("/x"))
    assert snapshot(make_plan(2), RunState(), Path("/x"))["attempts"] == []


def test_the_fake_run_ends_when_it_is_stopped():
    run = FakeRun(begun(1), start=True, grace_s=0.0)
    run.stop()
    started = time.monotonic()
    assert run.wait(5) == "stopped"
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (12.4, "12 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7_530, "2 h 5 min")]
)
def test_a_time_is_written_as_people_say_it(seconds, text):
    assert format_duration(seconds) == text


# ---- what a page asks for


@pytest.fixture
def filed(opened, tmp_path):
    """A panel over log files, with what a page heard since."""
    run, panel, page = opened(begun(2))
    run.logs.path_of = lambda attempt, rank: tmp_path / f"{attempt}.{rank}"

    def write(attempt, rank, text):
        data = text.replace("\n", "\r\n").encode()
        with (tmp_path / f"{attempt}.{rank}").open("ab") as file:
            file.write(data)
        run.logs.feed(attempt, rank, data)

    write(0, 0, "".join(f"line {i}\n" for i in range(3_000)))
    write(0, 1, "one loss\nanother\n")
    panel.update()
    page.heard()
    return run, panel, page


def test_what_was_skipped_is_read_back_for_the_page_that_asks(filed):
    filed[2].says(kind="read", tab="a", rank=0, first=1_000, n=3)
    (answer,) = filed[2].heard()
    assert (answer["kind"], answer["tab"], answer["asked"]) == ("lines", "a", [0, 1_000])
    assert answer["lines"] == {(0, 1_000 + i): f"line {1_000 + i}" for i in range(3)}


def test_a_search_of_the_files_counts_all_and_gives_the_first(filed):
    page = filed[2]
    page.says(kind="search", tab="a", id="x", text="LINE", ranks=[0, 1])
    wait_until(lambda: any(data.get("content", {}).get("done") for _, data, _ in page.comm.sent), 10)
    (_, data, buffers) = page.comm.sent[-1]
    answer = data["content"]
    assert (answer["id"], answer["total"], len(answer["hits"]), answer["done"]) == ("x", 3_000, run_panel.FOUND_LINES, True)
    assert buffers[0].decode().split("\n")[:2] == ["line 0", "line 1"]
    assert answer["hits"][0] == [0, 0]


def test_a_newer_search_of_a_tab_ends_the_older_one(filed, monkeypatch):
    run, _, page = filed
    asked = []

    def endless(text, ranks, *, goes_on):
        asked.append(text)
        while text == "old" and goes_on():
            time.sleep(0.001)
        yield 1, Hit(0, text)

    monkeypatch.setattr(run.logs, "search", endless)
    page.says(kind="search", tab="a", id="1", text="old", ranks=[0])
    wait_until(lambda: asked == ["old"], 10)
    page.says(kind="search", tab="a", id="2", text="new", ranks=[0])
    wait_until(lambda: any(data.get("content", {}).get("done") for _, data, _ in page.comm.sent), 10)
    assert [data["content"]["id"] for _, data, _ in page.comm.sent if data.get("content", {}).get("done")] == ["2"]


def test_a_log_file_is_given_piece_by_piece(filed, monkeypatch):
    monkeypatch.setattr(run_panel, "FILE_BYTES", 10)
    page = filed[2]
    page.says(kind="file", tab="a", rank=1, attempt=0, offset=0)
    page.says(kind="file", tab="a", rank=1, attempt=0, offset=10)
    pieces = [(data["content"]["offset"], data["content"]["size"], buffers[0]) for _, data, buffers in page.comm.sent]
    assert pieces == [(0, 19, b"one loss\r\n"), (10, 19, b"another\r\n")]


def test_a_file_that_is_gone_is_said_in_the_panel(filed):
    _, panel, page = filed
    page.says(kind="file", tab="a", rank=7, attempt=0, offset=0)
    assert "FileNotFoundError" in panel.state["problems"][0]


def test_starts_of_attempts_and_progress_are_sent_when_they_change(opened):
    run, panel, page = opened(begun(2))
    panel.update()
    page.heard()
    run.play([out(0, "a\n")])
    run.progress = {0: [["epoch", 1, 3]]}
    panel.update()
    panel.update()
    (message,) = page.heard()
    assert (message["starts"], message["progress"]) == ({"0": {"0": 0}}, {"0": [["epoch", 1, 3]]})
    run.play([out(0, "b\n")])
    panel.update()
    assert "progress" not in page.heard()[0]
    page.says(kind="hello", tab="late", rev=0, have={})
    replay = next(message for message in page.heard() if message["kind"] == "replay")
    assert (replay["starts"], replay["progress"]) == ({"0": {"0": 0}}, {"0": [["epoch", 1, 3]]})
