"""Stop ends a cell that blocks, in every front end and with every ipykernel: each handles the messages of a page in its own way.

A press goes as a message, then, without an answer, through the server's REST API. In 7.x the message is handled on a subshell while the cell
blocks; in 7.4 only with the panel's help; in 6.31 not at all.
"""

from __future__ import annotations

import pytest

NEWEST = ""  # the environment's own ipykernel
EVERY = [("lab", NEWEST), ("lab", "7.3"), ("lab", "6.31"), ("notebook7", NEWEST), ("notebook7", "6.31")]
WITH_SUBSHELLS = [(app, ipykernel) for app, ipykernel in EVERY if ipykernel != "6.31"]
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
FOLLOWS = "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass\nprint('not interrupted')"
ENDED = "[open(f'ended-{rank}').read() for rank in (0, 1)]"


def name_id(value):
    return value or "newest"


@pytest.mark.parametrize(("app", "ipykernel"), EVERY, ids=name_id)
def test_a_click_on_stop_ends_the_run_and_nothing_else(desk, app, ipykernel):
    page = desk("kept = 'a value'", TRAINS, FOLLOWS, app=app, ipykernel=ipykernel)
    page.run_cell(0)
    page.run_cell(1, wait=False)
    page.wait_output(1, "step 5", timeout_s=LAUNCH)
    assert page.is_running(1)
    panel = page.panel(1)
    panel.stop.click()
    panel.wait_phase("stopped")
    page.wait_idle()
    page.run_cell(2)
    assert page.outputs(2) == ["not interrupted"]
    assert "KeyboardInterrupt: the run was stopped" in page.output(1).inner_text()
    assert page.value(f"(kept, run.phase.value, {ENDED})") == ("a value", "stopped", ["1", "1"])
    assert len(page.interrupts) <= 1
