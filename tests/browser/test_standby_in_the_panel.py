"""What a panel says of how a run was started: nothing when its ranks stood by, why when they could not be used, what they had preloaded."""

from __future__ import annotations

from harness import wait_until

LAUNCH = 60.0  # seconds for ranks to get ready
TRAINS = """%%elastic_launch devices=cpu:0 -o run{options}
def train():
    import sympy, time
    print("at work")
    while True:
        time.sleep(0.01)
"""
AT_LEISURE = "__import__('ice_notebook.host.cores').host.cores.Leisure.look = lambda _: 1"  # also beside other tests
# However quick this machine is with an import.
SAYS_ALL = "__import__('ice_notebook.ui.widgets.panel_state').ui.widgets.panel_state.WORTH_SAYING_S = 0.0"
TWO_SETS = "__import__('ice_notebook.kernel.pool').kernel.pool.MOST_SETS = 2"
IS_READY = "__import__('ice_notebook.kernel.pool').kernel.pool.pool().describe()"


def wait_ready(page, *words):
    def is_ready():
        told = page.value(IS_READY)
        return "getting ready" not in told and all(word in told for word in ("ready", *words))

    wait_until(is_ready, LAUNCH, page)


def test_a_warm_start_is_silent_a_cold_one_gives_its_reason_and_what_was_preloaded_is_told(open_notebook):
    page = open_notebook(
        f"%load_ext ice_notebook\n{AT_LEISURE}\n{SAYS_ALL}\n{TWO_SETS}\n%elastic_standby 1",
        TRAINS.format(options=""),
        TRAINS.format(options=" env=PYTHONHASHSEED=7"),
        "%elastic_standby off",
    )
    page.run_cell(0)
    wait_ready(page)
    for cell, start, told in (
        (1, "standby", ""),
        (2, "cold", "Cold start: PYTHONHASHSEED changed."),
        (1, "standby", "preloaded"),
    ):
        if told == "preloaded":
            page.execute("%elastic_standby 1")
            wait_ready(page, "sympy loaded")
        page.run_cell(cell, wait=False)
        panel = page.panel(cell)
        panel.wait_text("at work", timeout_s=LAUNCH)
        shown = panel.root.inner_text()
        assert ("Cold start" in shown) is (start == "cold"), shown
        assert told in shown
        panel.stop.click()
        panel.wait_phase("stopped")
        page.wait_idle()
        assert page.value("run.state.attempts[0].start") == start
    page.run_cell(3)
    assert page.outputs(3) == ["No ranks stand by."]
