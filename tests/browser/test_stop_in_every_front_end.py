"""Stop ends a cell that blocks, in every front end and with every ipykernel: each handles the messages of a page in its own way.

A press goes as a message, then, without an answer, through the server's REST API. In 7.x the message is handled on a subshell while the cell
blocks; in 7.4 only with the panel's help; in 6.x not at all.
"""

from __future__ import annotations

import pytest

NEWEST = ""  # the environment's own ipykernel
KAGGLE = "kaggle"  # 6.17 and IPython 7
EVERY = [("lab", NEWEST), ("lab", "7.3"), ("lab", KAGGLE), ("notebook7", NEWEST), ("notebook7", "6.31")]
WITH_SUBSHELLS = [(app, ipykernel) for app, ipykernel in EVERY if ipykernel not in {"6.31", KAGGLE}]
LAUNCH = 60.0  # seconds for a rank to print: it imports torch

TRAINS = """%%elastic_launch devices=cpu:0-1 -o run
def train(launcher):
    import pathlib, signal, time
    interrupts, raise_it = [], signal.getsignal(signal.SIGINT)
    def count(number, frame):
        interrupts.append(number)
        raise_it(number, frame)
    signal.signal(signal.SIGINT, count)
    try:
        for step in range(100_000):
            print("step", step, kept)
            time.sleep(0.05)
    finally:
        for _ in range(10):
            time.sleep(0.05)  # a second interrupt would break in here
        pathlib.Path(f"ended-{launcher.rank}").write_text(str(len(interrupts)))
"""
# A late interrupt would end this cell; the page tries its second way 0.7 s after a press.
FOLLOWS = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass\nprint('not interrupted')"
ENDED = "[open(f'ended-{rank}').read() for rank in (0, 1)]"


# A played run whose cell waits.
PLAYED = """
run = show(*now(begun(2)), *[item for i in range(2000) for item in (out(i % 2, f"step {i}\\n"), 0.05)])
outcome = run.wait(60)
"""
CALLS = "(outcome, [name for name, _ in run.calls])"


def name_id(value):
    return value or "newest"


def in_every(pairs):
    return pytest.mark.parametrize(("app", "ipykernel"), pairs, ids=name_id)


@in_every(EVERY)
def test_a_click_on_stop_ends_the_run_and_nothing_else(desk, app, ipykernel):
    page = desk("kept = 'a value'", TRAINS, FOLLOWS, app=app, ipykernel=ipykernel)
    page.run_cell(0)
    page.run_cell(1, wait=False)
    page.panel(1).wait_text("step 5", timeout_s=LAUNCH)
    assert page.is_running(1)
    page.panel(1).stop.click()
    page.panel(1).wait_phase("stopped")
    page.wait_idle()
    page.run_cell(2)
    assert page.outputs(2) == ["not interrupted"]
    assert "KeyboardInterrupt: the run was stopped" in page.output(1).inner_text()
    assert page.value(f"(kept, run.phase.value, {ENDED})") == ("a value", "stopped", ["1", "1"])
    assert len(page.interrupts) <= 1


# The front ends send the same request; what it does depends on the kernel.
@in_every([("lab", NEWEST), ("notebook7", "6.31")])
def test_the_notebooks_interrupt_reaches_each_rank_once(desk, app, ipykernel):
    page = desk("kept = 'a value'", TRAINS, app=app, ipykernel=ipykernel)
    page.run_cell(0)
    page.run_cell(1, wait=False)
    page.panel(1).wait_text("step 5", timeout_s=LAUNCH)
    page.interrupt()
    page.panel(1).wait_phase("stopped")
    page.wait_idle()
    assert "KeyboardInterrupt: the run was stopped" in page.output(1).inner_text()
    assert page.value(f"(kept, run.phase.value, {ENDED})") == ("a value", "stopped", ["1", "1"])


@in_every(WITH_SUBSHELLS)
def test_the_message_alone_is_heard_while_the_cell_blocks(desk, app, ipykernel):
    page = desk(PLAYED, app=app, ipykernel=ipykernel)
    page.page.route("**/interrupt", lambda route: route.abort())
    page.run_cell(0, wait=False)
    page.panel(0).wait_text("step 5")
    page.panel(0).stop.click()
    page.panel(0).wait_phase("stopped")
    page.wait_idle()
    page.page.unroute_all()
    assert page.value(CALLS) == ("stopped", ["stop"])


@in_every(EVERY)
def test_the_interrupt_alone_is_enough(desk, app, ipykernel):
    deaf = PLAYED.replace("outcome =", "run.panel.on_msg(run.panel._received, remove=True)\noutcome =")
    page = desk(deaf, FOLLOWS, app=app, ipykernel=ipykernel)
    page.run_cell(0, wait=False)
    page.panel(0).wait_text("step 5")
    page.panel(0).stop.click()
    page.panel(0).wait_phase("stopped")
    page.wait_idle()
    page.run_cell(1)
    assert page.outputs(1) == ["not interrupted"]
    assert page.value(CALLS) == ("stopped", ["interrupt"])
    assert len(page.interrupts) == 1


# In 7.4 a button made by a cell is not handled while the cell blocks, so it gets the help that the panel gives itself.
@pytest.mark.parametrize("ipykernel", [NEWEST, "7.3"], ids=name_id)
def test_a_slow_callback_of_somebody_else_does_not_keep_stop_from_working(desk, ipykernel):
    button = """
import ipywidgets, threading
from ice_notebook.ui.widgets.kernel import keep_subshell
gate = threading.Event()
def hold(_):
    run._news.put(out(0, "held\\n"))
    gate.wait(30)
button = ipywidgets.Button(description="hold")
button.on_click(hold)
keep_subshell(button.comm)
button
"""
    page = desk(button, PLAYED, ipykernel=ipykernel)
    page.run_cell(0)
    page.run_cell(1, wait=False)
    page.panel(1).wait_text("step 5")
    page.click("hold", 0)
    page.panel(1).wait_text("held")  # all widgets share the subshell, which is held up now
    page.panel(1).stop.click()
    page.panel(1).wait_phase("stopped")
    page.wait_idle()
    assert page.execute("gate.set()", CALLS) == ("stopped", ["interrupt"])


def test_stop_at_the_moment_in_which_a_run_ends_does_not_reach_the_next_cell(desk):
    # The press itself ends the run, and nobody acknowledges it: when the page would try its second way the run is over.
    ends = PLAYED.replace(
        "outcome =",
        """
run.panel.on_msg(run.panel._received, remove=True)
def end(_, content, __):
    if content["kind"] == "press" and not run.state.phase.is_final:
        run._news.put(now(returned([value("1"), value("2")]))[-1])
run.panel.on_msg(end)
outcome =""",
    )
    page = desk(ends, FOLLOWS)
    page.run_cell(0, wait=False)
    page.panel(0).wait_text("step 5")
    page.panel(0).stop.click()
    page.panel(0).wait_phase("succeeded")
    page.wait_idle()
    page.run_cell(1)
    assert page.outputs(1) == ["not interrupted"]
    assert page.value(CALLS) == ("succeeded", [])
    assert page.interrupts == []


@in_every(EVERY)
def test_the_output_of_a_run_behind_never_lands_in_another_cell(desk, app, ipykernel):
    behind = PLAYED.replace("0.05)])", "0.05)], waits=False)").replace("outcome = run.wait(60)", "")
    other = "print('B begins')\nwhile len(run.logs.tail(0, 50)) < 10: pass\nprint('B ends')"
    page = desk(behind, other, app=app, ipykernel=ipykernel)
    page.run_cell(0)
    page.run_cell(1)
    assert page.outputs(1) == ["B begins\nB ends"]
    page.panel(0).wait_text("step 30")
    page.panel(0).stop.click()
    page.panel(0).wait_phase("stopped")
    assert len(page.outputs(0)) == 1
    assert page.value("[name for name, _ in run.calls]") == ["stop"]
