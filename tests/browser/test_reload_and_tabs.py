"""What a page knows of a run when it is reloaded, opened twice, flooded or left by its kernel: real runs that no cell waits for, and played ones."""

from __future__ import annotations

import re

import pytest
from harness import SETUP, JupyterLab, wait_until

LAUNCH = 60.0  # seconds for a rank to print: it imports torch
LOAD = "%load_ext ice_notebook"
BEHIND = """%%elastic_launch devices=cpu background -o run
import time
print("early words")
for step in range(100_000):
    print("step", step)
    time.sleep(0.05)
"""
OTHER = "print('another cell')"


def step_of(page, i=1):
    """Return the newest step that a page shows."""
    found = re.findall(r"step (\d+)", page.panel(i).root.inner_text())
    return max(map(int, found), default=-1)


@pytest.mark.parametrize("app", ["lab", "notebook7"])
def test_a_run_behind_is_live_in_every_tab_and_after_a_reload_and_stops_from_any(open_notebook, app):
    first = open_notebook(LOAD, BEHIND, OTHER, app=app)
    first.run_cell(0)
    first.run_cell(1)
    first.panel(1).wait_text("step 5", timeout_s=LAUNCH)
    first.run_cell(2)
    assert first.outputs(2) == ["another cell"]
    first.save()

    first.reload()
    first.panel(1).wait_phase("running")
    wait_until(lambda: step_of(first) > 5, page=first)
    assert first.panel(1).is_live

    def shows_early_words():  # said before this page was there; what comes of then is put above what it has already
        first.panel(1).scroll_to_top()
        first.next_frames()
        return "early words" in first.panel(1).root.inner_text()

    wait_until(shows_early_words, page=first)

    second = open_notebook(name=first.name, app=app)
    seen = step_of(first)
    wait_until(lambda: step_of(second) > seen, page=second)
    wait_until(lambda: step_of(first) > seen, page=first)
    second.panel(1).stop.click()
    second.panel(1).wait_phase("stopped")
    first.panel(1).wait_phase("stopped")
    assert first.outputs(2) == ["another cell"]
    assert first.value("(run.phase.value, run.state.stop_reason.value)") == ("stopped", "stop")
    assert first.interrupts + second.interrupts == []


def test_a_restarted_kernel_is_told_and_nothing_can_be_pressed(open_notebook):
    cell = 'run = show(*now(begun(2)), *[item for i in range(600) for item in (out(1, f"step {i}\\n"), 0.05)], waits=False)'
    page = open_notebook(cell, "print('new kernel')", setup=SETUP)
    page.run_cell(0)
    page.panel(0).wait_text("step 10")
    before = len(page.console_errors)
    page.restart_kernel()
    page.panel(0).wait_text(re.compile("kernel is gone"))
    assert page.panel(0).stop.is_disabled()
    assert not page.panel(0).is_live
    page.wait_ready()
    page.run_cell(1)
    assert page.outputs(1) == ["new kernel"]
    assert page.panel(0).stop.is_disabled()
    assert page.console_errors[before:] == []


def test_a_view_that_goes_leaves_the_others_alive(desk):
    cell = 'run = show(*now(begun(1)), *[item for i in range(2000) for item in (out(0, f"step {i}\\n"), 0.05)], plan=make_plan(1), waits=False)'
    page = desk(cell, "run.panel", "run.panel")
    page.run_all()
    for i in range(3):
        page.panel(i).wait_text(re.compile(r"step \d+"))
    page.clear_output(1)
    assert page.output(1).locator(".ice").count() == 0
    seen = step_of(page, 0)
    for i in (0, 2):
        wait_until(lambda i=i: step_of(page, i) > seen, page=page)
    page.panel(2).stop.click()
    for i in (0, 2):
        page.panel(i).wait_phase("stopped")


@pytest.fixture
def sparing(browser):
    """A page whose server passes 300 messages in 3 s; usually it is 3,000. What comes then is left out, those of widgets included."""
    with JupyterLab(arguments=["--ZMQChannelsWebsocketConnection.iopub_msg_rate_limit=100"]) as server:
        page = browser.open(server, server.notebook(["pass"]))
        page.execute(SETUP)
        yield page
        page.close()


def test_the_end_is_shown_although_all_ranks_exit_at_once_in_full_flight(sparing):
    """While the kernel sends so much else that the server leaves out messages."""
    n = 8
    begin = f'run = show(*now(begun({n})), out(0, "begins\\n"), plan=make_plan({n}), waits=False)'
    flight = f"""
import ipywidgets
other = ipywidgets.IntText()
for i in range(600):
    other.send("")
for i in range(5):
    for rank in range({n}):
        run._news.put(out(rank, "a line of a log\\n" * 3000))
for rank in range({n}):
    run._news.put(out(rank, f"last words of {{rank}}\\n"))
for event in now(returned([value(str(rank)) for rank in range({n})])):
    run._news.put(event)
run.wait()
"""
    page = sparing
    page.put_cells(begin, flight)
    for _ in range(4):
        page.run_cell(0)
        panel = page.panel(0)
        panel.wait_text("begins")
        page.run_cell(1)
        assert "message rate exceeded" in str(page.outputs(1))
        panel.wait_phase("succeeded")
        for rank in range(n):
            panel.wait_text(re.compile(f"last words of {rank}"))
        panel.tab("Results").click()
        assert panel.root.locator("tr", has_text=re.compile(r"run\.results\[\d\]")).count() == n
    assert (page.errors, page.foreign) == ([], [])
