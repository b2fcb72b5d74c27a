"""The panel by keyboard, in JupyterLab and Notebook 7: everything can be reached, and nothing pressed there touches the notebook's cells.

Both front ends cut, delete and change the selected cell at a single key, and the panel with it, unless an input has the focus.
"""

from __future__ import annotations

import pytest
from harness import wait_until

APPS = ["lab", "notebook7"]
RUN = """
run = show(*now(begun(2)), out(0, "a box of words\\n"), out(1, "x marks a spot\\n"), waits=False)
"""
SHORTCUTS = ["x", "d d", "m", "a", "b", "y", "r", "v", "z", "c", "Delete"]
# What a person can press or write into, and the words by which a screen reader tells it.
CONTROLS = """(root) => [...root.querySelectorAll('button, input, select, textarea, summary, a[href], [role=tab], [role=button]')]
    .filter(node => node.checkVisibility() && !node.disabled)
    .map((node, i) => { node.dataset.control ??= String(i); return node.dataset.control })"""
NAMES = """(root) => [...root.querySelectorAll('[data-control]')]
    .map(node => (node.ariaLabel || node.labels?.[0]?.textContent || node.textContent || '').trim())"""
FOCUSED = "() => document.activeElement?.dataset?.control ?? null"


def state_of(page):
    """Return the cells' types and sources."""
    return page.page.evaluate(
        """() => window.jupyterapp.shell.currentWidget.content.widgets.map(cell => [cell.model.type, cell.model.sharedModel.getSource()])"""
    )


@pytest.fixture(params=APPS)
def page(desk, request):
    """A page with a live run, and a cell before and after it."""
    page = desk("'before'", RUN, "'after'", app=request.param)
    page.run_cell(1)
    page.panel(1).wait_text("a box of words")
    return page


@pytest.mark.parametrize("how", ["pointer", "keyboard"])
def test_no_key_on_a_focused_button_touches_the_cells(page, how):
    before = state_of(page)
    tab, chip = page.panel(1).tab("Logs"), page.panel(1).root.locator("button[aria-pressed]:visible").first
    # Enter and Space are a button's own: they press what is focused.
    for button, all_keys in [(tab, [*SHORTCUTS, "Enter", "Space"]), (chip, ["x", "d d"])]:
        for keys in all_keys:
            button.click() if how == "pointer" else button.focus()
            page.press(*keys.split())
            page.next_frames()
            assert state_of(page) == before, f"{keys} by {how}"
    assert not page.is_busy


def test_what_is_typed_into_an_input_stays_there(page):
    before = state_of(page)
    inputs = page.panel(1).root.locator("input[type=search]:visible, input[type=text]:visible, textarea:visible")
    assert inputs.count()
    for i in range(inputs.count()):
        inputs.nth(i).click()
        page.page.keyboard.type("x dd mabyrvzc")
        assert inputs.nth(i).input_value() == "x dd mabyrvzc"
        page.press("Backspace", "Enter", "Shift+Enter", "Escape")
        page.next_frames()
        assert state_of(page) == before
        assert page.cells().split()[0] == "ccc"
    assert page.value("1 + 1") == 2


def test_every_control_has_a_name_and_is_reached_by_tab(page):
    panel = page.panel(1)
    controls = set(panel.root.evaluate(CONTROLS))
    assert len(controls) > 5
    assert [name for name in panel.root.evaluate(NAMES) if not name] == []
    panel.root.locator("[data-control='0']").focus()
    reached = {"0"}
    for _ in range(3 * len(controls)):
        page.press("Tab")
        focused = page.page.evaluate(FOCUSED)
        if focused is None and not panel.root.evaluate("(root) => root.contains(document.activeElement)"):
            break
        reached.add(focused)
    names = dict(
        zip(
            panel.root.evaluate("(root) => [...root.querySelectorAll('[data-control]')].map(node => node.dataset.control)"),
            panel.root.evaluate(NAMES),
            strict=True,
        )
    )
    assert sorted(names[one] for one in controls - reached) == []


def test_states_are_told_and_tabs_say_which_is_open(page):
    panel = page.panel(1)
    told = panel.root.locator("[role=status], [aria-live]")
    wait_until(lambda: "running" in " ".join(told.all_inner_texts()).lower(), page=page)
    assert panel.root.get_by_role("tablist").count() == 1
    assert panel.root.locator("[role=tab][aria-selected=true]:visible").count() == 1
    panel.stop.focus()
    page.press("Enter")  # by keyboard alone
    panel.wait_phase("stopped")
    wait_until(lambda: "stopped" in " ".join(told.all_inner_texts()).lower(), page=page)
