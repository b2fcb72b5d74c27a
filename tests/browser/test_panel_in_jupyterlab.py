"""The run panel in JupyterLab, with a run that is played: everything here happens while the cell blocks, unless the test says otherwise."""

from __future__ import annotations

import json
import re
import time

import pytest
from harness import SETUP, unreadable, wait_until

LIVE = """
lines = [item for i in range(2000) for item in (out(i % 2, f"step {i}\\n"), 0.05)]
run = show(*now(begun(2)), *lines)
outcome = run.wait(60)
"""


def calls(page):
    return page.value("(run.state.phase.value, [name for name, _ in run.calls])")


def panes(page):
    return page.output(0).locator(".ice-pane")


def chip(page, i=0):
    return page.output(i).locator(".ice-chip")


def wait_chip(page, word, timeout_s=10.0, i=0):
    page.output(i).locator(".ice-chip", has_text=re.compile(f"^{word}$")).wait_for(timeout=timeout_s * 1000)


def scroll(scroller, top):
    """Scroll as by a wheel, to an exact place."""
    scroller.evaluate("(node, top) => { node.dispatchEvent(new WheelEvent('wheel')); node.scrollTop = top }", top)


@pytest.fixture
def live(desk):
    """A page whose cell blocks and shows a run that prints."""
    page = desk(LIVE)
    page.run_cell(0, wait=False)
    wait_chip(page, "running")
    return page


def test_output_appears_while_the_cell_blocks(live):
    live.wait_output(0, "step 4", timeout_s=5)
    shown = live.panel(0).root.inner_text().lower()
    assert [word for word in ("rank 0", "rank 1", "cpu:0", "cpu:1", "running") if word not in shown] == []
    assert live.is_running(0)
    live.wait_output(0, "step 30", timeout_s=10)


def test_stop_is_heard_while_the_cell_blocks(live):
    live.wait_output(0, "step 4")
    started = time.monotonic()
    live.click("Stop", 0)
    wait_chip(live, "stopped")
    assert time.monotonic() - started < 2
    live.wait_idle()
    assert calls(live) == ("stopped", ["stop"])
    assert "Stopped on request." in live.output(0).inner_text()


def test_a_second_press_kills_and_a_double_click_does_not(desk):
    page = desk(LIVE.replace("*lines)", "*lines, grace_s=30)"))
    page.run_cell(0, wait=False)
    page.wait_output(0, "step 2")
    page.output(0).get_by_role("button", name="Stop", exact=True).dblclick()
    wait_chip(page, "stopping")
    kill = page.output(0).get_by_role("button", name="Kill now")
    kill.wait_for()
    assert page.is_running(0)
    kill.click()
    wait_chip(page, "stopped", timeout_s=3)
    page.wait_idle()
    assert calls(page) == ("stopped", ["stop", "kill"])


def test_a_page_without_an_answer_interrupts_the_kernel_once(desk):
    # A panel whose messages are never handled, as in front ends without subshells.
    deaf = LIVE.replace("outcome =", "run.panel.on_msg(run.panel._received, remove=True)\noutcome =")
    page = desk(deaf)
    page.run_cell(0, wait=False)
    page.wait_output(0, "step 20")
    page.click("Stop", 0)
    wait_chip(page, "stopped")
    page.wait_idle()
    assert calls(page) == ("stopped", ["interrupt"])
    assert len(page.interrupts) == 1


def test_a_run_that_no_cell_waits_for_is_stopped_by_message_only(desk):
    cell = 'run = show(*now(begun(2)), *[item for i in range(600) for item in (out(0, f"step {i}\\n"), 0.05)], waits=False)'
    page = desk(cell)
    page.run_cell(0)
    page.wait_output(0, "step 10")
    page.click("Stop", 0)
    wait_chip(page, "stopped")
    assert calls(page) == ("stopped", ["stop"])


def test_a_page_that_comes_late_gets_the_state_and_the_output(open_notebook):
    cell = """
steps = [item for i in range(600) for item in (out(1, f"step {i}\\n"), *[out(0, "words between\\n")] * (i == 5), 0.2 if i < 10 else 0.05)]
run = show(*now(begun(2)), out(0, "early words\\n"), *steps, waits=False)"""
    page = open_notebook(cell, "run.panel", setup=SETUP)
    page.run_cell(0)
    page.wait_output(0, "step 10")
    page.run_cell(1)  # a second view in the same page
    page.wait_output(1, "early words")
    page.save()
    second = open_notebook(name=page.name)
    second.wait_output(0, "early words", timeout_s=10)
    second.wait_output(0, re.compile(r"step \d+"), timeout_s=10)
    second.output(0).get_by_role("button", name="merged").click()

    def top_rows():
        second.panel(0).scroll_to_top()
        second.next_frames()
        rows = [text.replace("\n", "") for text in second.output(0).locator(".ice-rows > div").all_inner_texts()]
        return rows if "0words between" in rows else None

    rows = wait_until(top_rows, page=second)
    assert rows.index("1step 4") < rows.index("0words between") < rows.index("1step 6"), "in the order in which they came"
    second.click("Stop", 0)
    wait_chip(second, "stopped")
    wait_chip(page, "stopped")
    wait_chip(page, "stopped", i=1)
    page.save()
    page.reload()
    wait_chip(page, "stopped")
    page.wait_output(0, "early words")


def test_a_view_made_late_in_a_blocking_cell_is_filled_at_once(desk):
    cell = LIVE.replace("outcome =", "import time; time.sleep(1); display(run.panel)\noutcome =")
    page = desk(cell)
    page.run_cell(0, wait=False)
    page.panel(0, 1).wait_text(re.compile(r"step \d+"), timeout_s=2)
    assert page.is_running(0)
    page.click("Stop", 0)
    page.wait_idle()


def test_values_are_shown_and_their_html_cannot_run(desk):
    html = (
        '<b>bold</b><script>parent.document.title = "taken"</script><img src="http://192.0.2.1/x.png" onerror="parent.hacked = 1">'
    )
    page = desk(f"run = show(*now(begun(2)), *now(returned([value('41'), value('html', 'Table', {html!r})])))\nrun.wait()")
    page.run_cell(0)
    wait_chip(page, "succeeded")
    page.wait_output(0, "run.results[0]")  # nothing was printed, so the values show
    frame = page.output(0).frame_locator("iframe")
    frame.get_by_text("bold").wait_for()
    assert page.page.evaluate("() => [document.title === 'taken', window.hacked || 0]") == [False, 0]
    assert (page.foreign, page.forbidden) == ([], ["http://192.0.2.1/x.png"])


def test_a_failure_opens_by_itself_with_the_failing_line(desk):
    page = desk('run = show(*now(begun(3)), out(1, "about to fail\\n"), *now(failed(3, echo=0)), plan=make_plan(3))\nrun.wait()')
    page.run_cell(0)
    wait_chip(page, "failed")
    text = page.output(0).inner_text()
    assert "ZeroDivisionError: division by zero" in text
    assert "scale = 1 / (launcher.rank - 1)" in page.output(0).locator(".ice-hit").inner_text()
    assert "rank 0 (cpu:0): RuntimeError: Connection closed by peer" in text
    assert "20260721-0930-k3v9" in text
    # Each chip says what its rank failed with, in a line: what it has printed of it last may be torch's own words.
    chips = [chip.inner_text().splitlines()[-1] for chip in page.output(0).locator(".ice-rank").all()]
    assert chips == ["RuntimeError: Connection closed by peer [127.0.0.1]:36027", "ZeroDivisionError: division by zero", "\xa0"]
    page.output(0).get_by_role("tab", name="Logs").click()
    page.wait_output(0, "about to fail")


def test_a_flood_is_skipped_counted_and_does_not_block_the_page(desk):
    flood = "*[item for i in range(40) for item in (out(0, 'a line of output\\n' * 5000), 0.05)], out(0, 'the end\\n')"
    page = desk(f"run = show(*now(begun(1)), {flood}, *now(returned([value('1')])), plan=make_plan(1))\nrun.wait()")
    page.run_cell(0)
    wait_chip(page, "succeeded")
    page.wait_output(0, "the end")
    assert page.output(0).locator(".ice-rows > div").count() < 60
    scroll(page.output(0).locator(".ice-scroll"), 0)
    page.wait_output(0, re.compile(r"… [\d\u202f]+ lines not shown"))
    page.output(0).get_by_role("button").filter(has_text="newest").click()
    page.wait_output(0, "the end")


def test_scrolling_up_stays_there_while_output_comes(live):
    live.wait_output(0, "step 60", timeout_s=20)
    scroller = panes(live).nth(0).locator(".ice-scroll")
    scroller.hover()
    live.page.mouse.wheel(0, -60)
    live.next_frames()
    top, height = scroller.evaluate("(node) => [node.scrollTop, node.scrollHeight]")
    wait_until(lambda: scroller.evaluate("(node) => node.scrollHeight") >= height + 5 * 16, page=live)
    assert scroller.evaluate("(node) => node.scrollTop") == top
    live.click("Stop", 0)
    live.wait_idle()


def test_a_pane_that_changes_its_height_goes_on_following(desk):
    page = desk(
        'run = show(*now(begun(4)), *[out(r, "a line\\n" * 99 + "the end\\n") for r in range(4)], plan=make_plan(4), waits=False)',
    )
    page.run_cell(0)
    page.wait_output(0, "the end")
    for width in (1000, 500, 1000):
        page.set_width(width)
        for i in range(4):
            panes(page).nth(i).get_by_text("the end").wait_for(timeout=3000)
        assert page.output(0).locator(".ice-jump:visible").count() == 0
    page.page.set_viewport_size({"width": 1400, "height": 1000})


def test_progress_bars_stay_one_line_and_colours_are_drawn(desk):
    script = r'*[item for i in range(20) for item in (out(0, f"\r{i * 5}%|###"), 0.02)], out(0, "\n\x1b[31mred\x1b[0m plain <b>not bold</b>\n")'
    page = desk(f"run = show(*now(begun(1)), {script}, *now(returned([value('1')])), plan=make_plan(1))\nrun.wait()")
    page.run_cell(0)
    page.wait_output(0, "plain <b>not bold</b>")
    rows = page.output(0).locator(".ice-rows > div").all_inner_texts()
    assert rows == ["95%|###", "red plain <b>not bold</b>"]
    assert page.output(0).locator(".ice-rows span").inner_text() == "red"


def test_a_panel_restored_without_its_kernel_says_so(open_notebook, lab):
    cell = 'run = show(*now(begun(2)), *[item for i in range(600) for item in (out(1, f"step {i}\\n"), 0.05)], waits=False)'
    page = open_notebook(cell, setup=SETUP)
    page.run_cell(0)
    page.wait_output(0, "step 4")
    page.command("@jupyter-widgets/jupyterlab-manager:saveWidgetState")
    wait_until(lambda: page.save() or "widgets" in lab.read(page.name).metadata, page=page)
    page.command("@jupyter-widgets/jupyterlab-manager:saveWidgetState")  # off again: the server keeps it
    page.close()
    lab.end_kernels(page.name)
    models = lab.read(page.name).metadata.widgets["application/vnd.jupyter.widget-state+json"].state.values()
    state = next(model.state.state for model in models if "began_at" in model.state.get("state", {}))
    restored = open_notebook(name=page.name)
    restored.wait_output(0, "Saved view")
    assert restored.output(0).get_by_role("button", name="Stop", exact=True).is_disabled()
    assert restored.output(0).locator(".ice-live").count() == 0
    restored.wait_output(0, "the output is not kept in the notebook")
    # Its clock stands where it stood when the notebook was saved.
    assert restored.output(0).locator(".ice-fact b").first.inner_text() == f"0:{int(state.now - state.began_at):02}"


def test_lost_messages_are_made_good(desk):
    # Of three messages of a kind two are lost; only signs of life come through.
    lossy = """
import collections, itertools
sent = collections.defaultdict(itertools.count)
def lossy(content, buffers=None, send=RunPanel.send):
    if content["kind"] == "beat" or next(sent[content["kind"]]) % 3 == 2:
        send(run.panel, content, buffers)
def lossy_state(key=None, send=RunPanel.send_state):
    if key is None or next(sent["state"]) % 3 == 2:
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
    page = desk(lossy, cell)
    page.run_cell(0)
    page.run_cell(1)
    page.panel(1).wait_phase("succeeded")
    page.wait_output(1, "step 59")
    scroller = page.output(1).locator(".ice-scroll")
    wait_until(lambda: scroller.evaluate("(node) => node.firstChild.offsetHeight") == 60 * 16, page=page)
    for step in (0, 20, 40):
        scroll(scroller, step * 16)
        page.wait_output(1, re.compile(f"^step {step}$"))


def test_an_error_of_the_panel_is_shown_in_it(desk):
    cell = "def broken(): raise OSError('the socket is closed')\nrun = show(*now(begun(2)), waits=False)\nrun.stop = broken"
    page = desk(cell)
    page.run_cell(0)
    wait_chip(page, "running")
    page.click("Stop", 0)
    page.wait_output(0, "OSError: the socket is closed")


def test_the_saved_notebook_is_small_and_holds_the_constant_text(desk, lab):
    page = desk("run = show(*now(begun(1)), out(0, 'x' * 60 + '\\n'), *now(returned([value('1')])), plan=make_plan(1))\nrun.wait()")
    page.run_cell(0)
    wait_chip(page, "succeeded")
    page.save()
    found = []
    wait_until(lambda: found.append(lab.read(page.name)) or found[-1].cells[0].outputs, page=page)
    outputs = found[-1].cells[0].outputs
    assert outputs[0].data["text/plain"] == "RunPanel(train, 1 rank)"
    assert len(json.dumps(found[-1])) < 20_000


def test_the_panel_never_scrolls_sideways(desk):
    long = "x" * 400
    cell = f"""
run = show(*now(begun(3)), out(0, {long!r} + "\\n"), *now(returned([value({long!r})] * 3)), plan=make_plan(3, name="train_{"very_" * 12}long(launcher)"))
run.wait()"""
    page = desk(cell)
    page.run_cell(0)
    wait_chip(page, "succeeded")
    for width in (1250, 620, 380):
        page.set_width(width)
        for tab in ("Logs", "Results"):
            page.output(0).get_by_role("tab", name=re.compile(tab)).click()
            box = page.output(0).locator(".ice")
            assert box.evaluate("(node) => node.scrollWidth <= node.clientWidth + 1")
            inner = (
                page.output(0)
                .locator(".ice-page:visible, .ice-header")
                .evaluate_all(
                    "(nodes) => nodes.every(node => node.scrollWidth <= node.clientWidth + 1)",
                )
            )
            assert inner
    page.page.set_viewport_size({"width": 1400, "height": 1000})


# The sixteen that have names are ours to choose, for each theme; the others are what the program has printed.
COLOURS = "".join(rf"\x1b[{code}mcolour {code}\x1b[0m\n" for code in (*range(31, 38), *range(90, 98), 2, 7))


ENDS = {"running": "", "failed": "*now(failed(2, echo=0))", "done": "*now(returned([value('a text'), value('{}')]))"}


@pytest.mark.parametrize("end", ENDS.values(), ids=list(ENDS))
def test_every_text_can_be_read_in_both_themes(desk, end):
    page = desk(f"run = show(*now(begun(2)), out(0, '{COLOURS}'), out(1, 'see https://pytorch.org\\n'), {end})\nNone")
    page.run_cell(0, wait=False)
    shown = page.output(0).locator(".ice")
    shown.get_by_role("tab", name="Logs").click()
    shown.get_by_text("pytorch.org").first.wait_for()
    found: list[str] = []
    try:
        for dark in (False, True):
            page.set_theme(dark=dark)
            for name in ("Logs", "Results", "Failure"):
                tab = shown.get_by_role("tab", name=name)
                if tab.is_visible() and tab.is_enabled():
                    tab.click()
                    page.next_frames()
                    found += [f"{name}, {'dark' if dark else 'light'}: {text}" for text in unreadable(shown)]
    finally:
        page.set_theme(dark=False)
    assert not found, "\n".join(found)
