"""The run panel in JupyterLab, with a run that is played: everything here happens while the cell blocks, unless the test says otherwise."""

from __future__ import annotations

import json
import re
import time

import pytest
from harness import wait_until

pytestmark = pytest.mark.browser

SETUP = """
from fake_run import *
from IPython.display import display
from ice_notebook.widgets.run_panel import RunPanel

def show(*script, n=2, waits=True, **how):
    run = FakeRun(script, **how)
    panel = RunPanel(run, cell_waits=waits)
    display(panel)
    run.subscribe(panel)
    run.panel = panel
    return run.start()
"""
LIVE = """
lines = [item for i in range(2000) for item in (out(i % 2, f"step {i}\\n"), 0.05)]
run = show(*now(begun(2)), *lines)
outcome = run.wait(60)
"""
CALLS = "print(run.state.phase.value, [name for name, _ in run.calls])"


def panes(page):
    return page.output(1).locator(".ice-pane")


def chip(page, i=1):
    return page.output(i).locator(".ice-chip")


def wait_chip(page, word, timeout_s=10.0, i=1):
    page.output(i).locator(".ice-chip", has_text=re.compile(f"^{word}$")).wait_for(timeout=timeout_s * 1000)


def scroll(scroller, top):
    """Scroll as by a wheel, to an exact place."""
    scroller.evaluate("(node, top) => { node.dispatchEvent(new WheelEvent('wheel')); node.scrollTop = top }", top)


@pytest.fixture
def live(open_notebook):
    """A page whose second cell blocks and shows a run that prints."""
    page = open_notebook(SETUP, LIVE, CALLS)
    page.run_cell(0)
    page.run_cell(1, wait=False)
    wait_chip(page, "running")
    return page


def test_output_appears_while_the_cell_blocks(live):
    live.wait_output(1, "step 4", timeout_s=5)
    first = panes(live).nth(0).inner_text()
    assert "rank 0" in first
    assert "cpu:0" in first
    assert "running" in first.lower()
    assert live.is_running(1)
    live.wait_output(1, "step 30", timeout_s=10)


def test_stop_is_heard_while_the_cell_blocks(live):
    live.wait_output(1, "step 4")
    started = time.monotonic()
    live.click("Stop", 1)
    wait_chip(live, "stopped")
    assert time.monotonic() - started < 2
    live.wait_idle()
    live.run_cell(2)
    live.wait_output(2, re.compile("stopped \\['stop'\\]"))
    assert "Stopped: you pressed Stop" in live.output(1).inner_text()


def test_a_second_press_kills_and_a_double_click_does_not(open_notebook):
    page = open_notebook(SETUP, LIVE.replace("*lines)", "*lines, grace_s=30)"), CALLS)
    page.run_cell(0)
    page.run_cell(1, wait=False)
    page.wait_output(1, "step 2")
    page.output(1).get_by_role("button", name="Stop", exact=True).dblclick()
    wait_chip(page, "stopping")
    kill = page.output(1).get_by_role("button", name="Kill now")
    kill.wait_for()
    assert page.is_running(1)
    kill.click()
    wait_chip(page, "stopped", timeout_s=3)
    page.wait_idle()
    page.run_cell(2)
    page.wait_output(2, re.compile("stopped \\['stop', 'kill'\\]"))


def test_a_page_without_an_answer_interrupts_the_kernel_once(open_notebook):
    # A panel whose messages are never handled, as in front ends without subshells.
    deaf = LIVE.replace("outcome =", "run.panel.on_msg(run.panel._received, remove=True)\noutcome =")
    page = open_notebook(SETUP, deaf, CALLS)
    page.run_cell(0)
    page.run_cell(1, wait=False)
    page.wait_output(1, "step 20")
    page.click("Stop", 1)
    wait_chip(page, "stopped")
    page.wait_idle()
    page.page.wait_for_timeout(1000)
    page.run_cell(2)
    page.wait_output(2, re.compile("stopped \\['interrupt'\\]"))


def test_a_run_that_no_cell_waits_for_is_stopped_by_message_only(open_notebook):
    cell = 'run = show(*now(begun(2)), *[item for i in range(600) for item in (out(0, f"step {i}\\n"), 0.05)], waits=False)'
    page = open_notebook(SETUP, cell, CALLS)
    page.run_cell(0)
    page.run_cell(1)
    page.wait_output(1, "step 10")
    page.click("Stop", 1)
    wait_chip(page, "stopped")
    page.run_cell(2)
    page.wait_output(2, re.compile("stopped \\['stop'\\]"))


def test_shortcuts_with_a_focused_button_leave_the_cells_alone(live):
    live.wait_output(1, "step 4")
    before = live.cells().split()[0]
    tab = live.output(1).locator(".ice-tab").first
    for keys in (["x"], ["d", "d"], ["m"], ["Enter"]):
        tab.click()
        live.press(*keys)
        tab.focus()
        live.press(*keys)
        live.page.wait_for_timeout(200)
        assert live.cells().split()[0] == before, keys
    live.click("Stop", 1)
    live.wait_idle()


def test_a_page_that_comes_late_gets_the_state_and_the_output(open_notebook):
    cell = 'run = show(*now(begun(2)), out(0, "early words\\n"), *[item for i in range(600) for item in (out(1, f"step {i}\\n"), 0.05)], waits=False)'
    page = open_notebook(SETUP, cell, "run.panel", CALLS)
    page.run_cell(0)
    page.run_cell(1)
    page.wait_output(1, "step 10")
    page.run_cell(2)  # a second view in the same page
    page.wait_output(2, "early words")
    page.save()
    second = open_notebook(name=page.name)
    second.wait_output(1, "early words", timeout_s=10)
    second.wait_output(1, re.compile(r"step \d+"), timeout_s=10)
    second.click("Stop", 1)
    wait_chip(second, "stopped")
    wait_chip(page, "stopped")
    wait_chip(page, "stopped", i=2)
    page.save()
    page.reload()
    wait_chip(page, "stopped")
    page.wait_output(1, "early words")


def test_a_view_made_late_in_a_blocking_cell_is_filled_at_once(open_notebook):
    cell = LIVE.replace("outcome =", "import time; time.sleep(1); display(run.panel)\noutcome =")
    page = open_notebook(SETUP, cell)
    page.run_cell(0)
    page.run_cell(1, wait=False)
    page.output(1).locator(".ice").nth(1).wait_for()
    page.output(1).locator(".ice").nth(1).get_by_text("step 0").first.wait_for(timeout=2000)
    page.click("Stop", 1)
    page.wait_idle()


def test_values_are_shown_and_their_html_cannot_run(open_notebook):
    html = (
        '<b>bold</b><script>parent.document.title = "taken"</script><img src="http://192.0.2.1/x.png" onerror="parent.hacked = 1">'
    )
    page = open_notebook(
        SETUP, f"run = show(*now(begun(2)), *now(returned([value('41'), value('html', 'Table', {html!r})])))\nrun.wait()"
    )
    page.run_cell(0)
    page.run_cell(1)
    wait_chip(page, "succeeded")
    page.wait_output(1, "run.results[0]")  # nothing was printed, so the values show
    frame = page.output(1).frame_locator("iframe")
    frame.get_by_text("bold").wait_for()
    assert page.page.evaluate("() => [document.title === 'taken', window.hacked || 0]") == [False, 0]
    assert (page.foreign, page.forbidden) == ([], ["http://192.0.2.1/x.png"])


def test_a_failure_opens_by_itself_with_the_failing_line(open_notebook):
    page = open_notebook(
        SETUP, 'run = show(*now(begun(3)), out(1, "about to fail\\n"), *now(failed(3, echo=0)), plan=make_plan(3))\nrun.wait()'
    )
    page.run_cell(0)
    page.run_cell(1)
    wait_chip(page, "failed")
    text = page.output(1).inner_text()
    assert "ZeroDivisionError: division by zero" in text
    assert "scale = 1 / (launcher.rank - 1)" in page.output(1).locator(".ice-hit").inner_text()
    assert "rank 0 (cpu:0): RuntimeError: Connection closed by peer" in text
    assert "20260721-0930-k3v9" in text
    page.output(1).get_by_role("tab", name="Output").click()
    page.wait_output(1, "about to fail")


def test_a_flood_is_skipped_counted_and_does_not_block_the_page(open_notebook):
    flood = "*[item for i in range(40) for item in (out(0, 'a line of output\\n' * 5000), 0.05)], out(0, 'the end\\n')"
    page = open_notebook(SETUP, f"run = show(*now(begun(1)), {flood}, *now(returned([value('1')])), plan=make_plan(1))\nrun.wait()")
    page.run_cell(0)
    page.run_cell(1)
    wait_chip(page, "succeeded")
    page.wait_output(1, "the end")
    assert page.output(1).locator(".ice-rows > div").count() < 60
    scroll(page.output(1).locator(".ice-scroll"), 0)
    page.wait_output(1, re.compile(r"… [\d\u202f]+ lines not shown"))
    page.wait_output(1, "↓ newest")
    page.click("↓ newest", 1)
    page.wait_output(1, "the end")


def test_scrolling_up_stays_there_while_output_comes(live):
    live.wait_output(1, "step 60", timeout_s=20)
    scroller = panes(live).nth(0).locator(".ice-scroll")
    scroller.hover()
    live.page.mouse.wheel(0, -60)
    live.page.wait_for_timeout(150)
    before = scroller.evaluate("(node) => node.scrollTop")
    live.page.wait_for_timeout(1000)
    assert scroller.evaluate("(node) => [node.scrollTop, node.scrollHeight - node.clientHeight > node.scrollTop + 20]") == [
        before,
        True,
    ]
    live.click("Stop", 1)
    live.wait_idle()


def test_a_pane_that_changes_its_height_goes_on_following(open_notebook):
    page = open_notebook(
        SETUP,
        'run = show(*now(begun(4)), *[out(r, "a line\\n" * 99 + "the end\\n") for r in range(4)], plan=make_plan(4), waits=False)',
    )
    page.run_cell(0)
    page.run_cell(1)
    page.wait_output(1, "the end")
    for width in (1000, 500, 1000):
        page.set_width(width)
        for i in range(4):
            panes(page).nth(i).get_by_text("the end").wait_for(timeout=3000)
        assert page.output(1).locator(".ice-jump:visible").count() == 0
    page.page.set_viewport_size({"width": 1400, "height": 1000})


def test_progress_bars_stay_one_line_and_colours_are_drawn(open_notebook):
    script = r'*[item for i in range(20) for item in (out(0, f"\r{i * 5}%|###"), 0.02)], out(0, "\n\x1b[31mred\x1b[0m plain <b>not bold</b>\n")'
    page = open_notebook(
        SETUP, f"run = show(*now(begun(1)), {script}, *now(returned([value('1')])), plan=make_plan(1))\nrun.wait()"
    )
    page.run_cell(0)
    page.run_cell(1)
    page.wait_output(1, "plain <b>not bold</b>")
    rows = page.output(1).locator(".ice-rows > div").all_inner_texts()
    assert rows == ["95%|###", "red plain <b>not bold</b>"]
    assert page.output(1).locator(".ice-rows span").inner_text() == "red"


def test_a_restarted_kernel_is_told_and_nothing_can_be_pressed(open_notebook):
    cell = 'run = show(*now(begun(2)), *[item for i in range(600) for item in (out(1, f"step {i}\\n"), 0.05)], waits=False)'
    page = open_notebook(SETUP, cell)
    page.run_cell(0)
    page.run_cell(1)
    page.wait_output(1, "step 10")
    page.restart_kernel()
    page.wait_output(1, "The kernel is gone or was restarted", timeout_s=5)
    assert page.output(1).get_by_role("button", name="Stop", exact=True).is_disabled()
    assert page.output(1).locator(".ice-live").count() == 0
    page.wait_ready()  # the new kernel


def test_a_panel_restored_without_its_kernel_says_so(open_notebook, lab):
    cell = 'run = show(*now(begun(2)), *[item for i in range(600) for item in (out(1, f"step {i}\\n"), 0.05)], waits=False)'
    page = open_notebook(SETUP, cell)
    page.run_cell(0)
    page.run_cell(1)
    page.wait_output(1, "step 4")
    page.command("@jupyter-widgets/jupyterlab-manager:saveWidgetState")
    page.page.wait_for_timeout(500)
    page.save()
    wait_until(lambda: "widgets" in lab.read(page.name).metadata, page=page)
    page.command("@jupyter-widgets/jupyterlab-manager:saveWidgetState")  # off again: the server keeps it
    lab.end_kernels()
    restored = open_notebook(name=page.name)
    restored.wait_output(1, "Saved view")
    assert restored.output(1).get_by_role("button", name="Stop", exact=True).is_disabled()
    assert restored.output(1).locator(".ice-live").count() == 0
    restored.wait_output(1, "the output is not kept in the notebook")
    elapsed = restored.output(1).locator(".ice-fact b").first.inner_text()
    restored.page.wait_for_timeout(1500)
    assert restored.output(1).locator(".ice-fact b").first.inner_text() == elapsed


def test_lost_messages_are_made_good(open_notebook):
    lossy = """
count = 0
def lossy(content, buffers=None, send=RunPanel.send):
    global count
    count += 1
    if content["kind"] == "beat" or count % 3 == 0:
        send(run.panel, content, buffers)
def lossy_state(key=None, send=RunPanel.send_state):
    global count
    count += 1
    if count % 3 == 0 or key is None:
        send(run.panel, key)
"""
    cell = """
run = FakeRun([*now(begun(1)), *[item for i in range(60) for item in (out(0, f"step {i}\\n"), 0.05)], *now(returned([value("41")]))], plan=make_plan(1))
run.panel = RunPanel(run)
display(run.panel)
run.panel.send, run.panel.send_state = lossy, lossy_state
run.subscribe(run.panel)
run.start().wait()
"""
    page = open_notebook(SETUP, lossy, cell)
    page.run_cell(0)
    page.run_cell(1)
    page.run_cell(2)
    wait_chip(page, "succeeded", i=2)
    page.wait_output(2, "step 59")
    for step in (0, 20, 40):
        scroll(page.output(2).locator(".ice-scroll"), step * 16)
        page.wait_output(2, re.compile(f"^step {step}$"))
    assert page.output(2).locator(".ice-scroll").evaluate("(node) => node.firstChild.offsetHeight") == 60 * 16


def test_an_error_of_the_panel_is_shown_in_it(open_notebook):
    cell = "def broken(): raise OSError('the socket is closed')\nrun = show(*now(begun(2)), waits=False)\nrun.stop = broken"
    page = open_notebook(SETUP, cell)
    page.run_cell(0)
    page.run_cell(1)
    wait_chip(page, "running")
    page.click("Stop", 1)
    page.wait_output(1, "OSError: the socket is closed")


def test_the_saved_notebook_is_small_and_holds_the_constant_text(open_notebook, lab):
    page = open_notebook(
        SETUP, "run = show(*now(begun(1)), out(0, 'x' * 60 + '\\n'), *now(returned([value('1')])), plan=make_plan(1))\nrun.wait()"
    )
    page.run_cell(0)
    page.run_cell(1)
    wait_chip(page, "succeeded")
    page.save()
    found = []
    wait_until(lambda: found.append(lab.read(page.name)) or found[-1].cells[1].outputs, page=page)
    outputs = found[-1].cells[1].outputs
    assert outputs[0].data["text/plain"] == "RunPanel(train, 1 rank)"
    assert len(json.dumps(found[-1])) < 20_000


def test_the_panel_never_scrolls_sideways(open_notebook):
    long = "x" * 400
    cell = f"""
run = show(*now(begun(3)), out(0, {long!r} + "\\n"), *now(returned([value({long!r})] * 3)), plan=make_plan(3, name="train_{"very_" * 12}long(launcher)"))
run.wait()"""
    page = open_notebook(SETUP, cell)
    page.run_cell(0)
    page.run_cell(1)
    wait_chip(page, "succeeded")
    for width in (1250, 620, 380):
        page.set_width(width)
        for tab in ("Output", "Results"):
            page.output(1).get_by_role("tab", name=re.compile(tab)).click()
            box = page.output(1).locator(".ice")
            assert box.evaluate("(node) => node.scrollWidth <= node.clientWidth + 1")
            inner = (
                page.output(1)
                .locator(".ice-page:visible, .ice-header")
                .evaluate_all(
                    "(nodes) => nodes.every(node => node.scrollWidth <= node.clientWidth + 1)",
                )
            )
            assert inner
    page.page.set_viewport_size({"width": 1400, "height": 1000})
