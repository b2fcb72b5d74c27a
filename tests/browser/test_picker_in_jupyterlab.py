"""The device picker in JupyterLab and Notebook 7, with machines that are written down."""

from __future__ import annotations

import re
import subprocess
import sys

import nbformat
import pytest
from harness import WAIT_S, unreadable, wait_until

SETUP = "from recorded_machines import *\nfrom ice_notebook import DevicePicker"
SHOW = f"{SETUP}\nsource = eight()\npicker = DevicePicker(source=source)\npicker"
BLOCK = "import threading\ngate = threading.Event()\ngate.wait(30)"
ORDER = ["cuda:0", "cuda:2", "cuda:7", "cuda:1", "cuda:3", "cuda:4", "cuda:5", "cuda:6"]  # free ones first


class Picker:
    """A picker in a page, by what a person sees of it."""

    def __init__(self, page, i=0, n=0):
        self.page = page
        self.root = page.output(i).locator(".ice-devices").nth(n)

    def box(self, device):
        return self.root.get_by_role("checkbox", name=re.compile(rf"^{device}\b"))

    def card(self, device):
        return self.root.locator("label").filter(has=self.page.page.get_by_role("checkbox", name=re.compile(rf"^{device}\b")))

    def button(self, name):
        return self.root.get_by_role("button", name=name)

    @property
    def order(self):
        return self.root.locator(".ice-card .ice-top b").all_inner_texts()

    def wait_line(self, devices, timeout_s=WAIT_S):
        self.root.locator("code", has_text=re.compile(rf"^%%elastic_launch devices={re.escape(devices)}$")).wait_for(
            timeout=timeout_s * 1000
        )

    def wait_text(self, text, timeout_s=WAIT_S):
        self.root.get_by_text(text).locator("visible=true").first.wait_for(timeout=timeout_s * 1000)


@pytest.fixture
def shown(desk):
    """A page with the picker of eight GPUs, and that picker."""
    page = desk(SHOW)
    page.run_cell(0)
    picker = Picker(page)
    picker.root.wait_for()
    return page, picker


# ---- what it shows


def test_the_cards_say_what_is_known_with_free_ones_first(shown):
    _, picker = shown
    assert picker.order == ORDER
    busy = picker.card("cuda:1").inner_text()
    for text in ("in use", "NVIDIA H200", "131 / 140 GiB", "97 %", "71 °C · 654 / 700 W", "alice python", "123 GiB"):
        assert text in busy, text
    assert "yours: run train(launcher, epochs=3)" in picker.card("cuda:3").inner_text()
    assert "another user or container" in picker.card("cuda:6").inner_text()
    assert "and 2 more" in picker.card("cuda:5").inner_text()
    assert "8 GPUs, 3 free · 192 CPU cores" in picker.root.inner_text()
    assert "recorded: eight H200" in picker.root.inner_text()


def test_hidden_gpus_are_told_and_seen_ones_have_both_names(desk):
    page = desk(
        f"{SETUP}\nDevicePicker(source=masked('5,6'))",
        f"{SETUP}\nDevicePicker(source=with_mig())",
        f"{SETUP}\nDevicePicker(source=without_gpus())",
    )
    page.run_all()
    masked, mig, none = (Picker(page, i) for i in range(3))
    masked.wait_text("CUDA_VISIBLE_DEVICES=5,6, which hides 6 GPUs of this machine")
    assert "cuda:5" in masked.card("cuda:0").inner_text()
    assert masked.box("cuda:0").get_attribute("aria-label") == "cuda:0, cuda:5 of this machine, NVIDIA H200, in use"
    assert "cuda:0:2" in mig.card("cuda:2").inner_text()
    none.wait_text("No GPU can be used here: this machine has no NVIDIA driver.")
    assert none.root.locator(".ice-card").count() == 0
    assert not none.button("Pick all GPUs").is_visible()


# ---- what is picked


def test_what_is_clicked_is_picked_in_the_kernel_and_stands_in_the_line(shown):
    page, picker = shown
    picker.card("cuda:2").click()
    picker.wait_line("cuda:2")
    picker.box("cuda:0").click()
    picker.wait_line("cuda:0,2")
    picker.wait_text("2 ranks, one on each GPU.")
    assert page.value("picker.devices") == "cuda:0,2"
    picker.box("cuda:2").click()
    picker.wait_line("cuda:0")
    picker.button("Pick all GPUs").click()
    picker.wait_line("cuda:0,2,7")
    assert [picker.box(device).is_checked() for device in ORDER] == [True] * 3 + [False] * 5
    picker.button("Pick nothing").click()
    picker.wait_text("Nothing is picked yet.")
    assert page.value("picker.devices") == ""


def test_ranks_on_the_cpu_are_stepped_or_typed(shown):
    page, picker = shown
    picker.card("cuda:2").click()
    picker.button("One rank less").click()
    picker.wait_line("cuda:2")
    picker.button("One rank more").click(click_count=2)
    picker.wait_line("cpu:0,1")
    assert not picker.box("cuda:2").is_checked()
    count = picker.root.get_by_role("spinbutton", name="Ranks on the CPU")
    count.fill("6")
    page.press("Enter")
    picker.wait_line("cpu:0-5")
    picker.wait_text("6 ranks on the CPU.")
    count.fill("99999")
    page.press("Tab")
    picker.wait_line("cpu:0-1023")
    assert page.value("picker.devices") == "cpu:0-1023"


def test_two_views_of_one_picker_agree_and_code_changes_both(desk):
    page = desk(SHOW, "picker", "picker.devices = 'cuda:1,3'")
    page.run_cell(0)
    page.run_cell(1)
    views = [Picker(page, i) for i in (0, 1)]
    views[0].card("cuda:7").click()
    for view in views:
        view.wait_line("cuda:7")
        assert view.box("cuda:7").is_checked()
    page.run_cell(2)
    for view in views:
        view.wait_line("cuda:1,3")
        assert not view.box("cuda:7").is_checked()


@pytest.mark.parametrize(("app", "ipykernel"), [("lab", ""), ("lab", "7.3"), ("notebook7", ""), ("notebook7", "7.3")])
def test_a_click_is_taken_up_while_a_cell_blocks(desk, app, ipykernel):
    page = desk(SHOW, BLOCK, app=app, ipykernel=ipykernel)
    page.run_cell(0)
    picker = Picker(page)
    picker.wait_text("Nothing is picked yet.")
    page.run_cell(1, wait=False)
    wait_until(lambda: page.is_running(1), page=page)
    picker.card("cuda:7").click()
    picker.wait_line("cuda:7")
    assert page.is_running(1)


def test_a_kernel_that_cannot_hear_is_said_to_be_busy_and_the_click_is_not_lost(desk):
    page = desk(SHOW, BLOCK, ipykernel="6.31")
    page.run_cell(0)
    picker = Picker(page)
    picker.wait_text("Nothing is picked yet.")
    page.run_cell(1, wait=False)
    wait_until(lambda: page.is_running(1), page=page)
    picker.card("cuda:7").click()
    picker.wait_text("The kernel is busy. What you asked for is done as soon as it answers.")
    assert picker.box("cuda:7").is_checked()
    page.interrupt()
    picker.wait_line("cuda:7")
    wait_until(lambda: not picker.root.get_by_text("The kernel is busy").is_visible(), page=page)


def test_the_picker_of_the_notebook_says_what_launches_use(desk):
    page = desk("%elastic_devices")
    page.run_cell(0)
    picker = Picker(page)
    picker.wait_text("Nothing is picked: launches that name no devices use auto.")
    picker.button("One rank more").click()
    picker.wait_text("1 rank on the CPU. Launches that name no devices use it too.")
    page.execute("from ice_notebook import ElasticLauncher")
    assert page.value("ElasticLauncher().devices") == ("cpu:0",)
    page.execute("get_ipython().run_line_magic('elastic_devices', 'off')")
    picker.wait_text(re.compile(r"^1 rank on the CPU\.$"))


# ---- readings


def test_readings_come_by_themselves_and_no_card_moves_until_somebody_asks(shown):
    page, picker = shown
    page.execute("source.uses[source.machine.gpus[0].uuid] = use(100.0, 55, 60, 400, user('zoe', 99.0))")
    picker.wait_text("zoe")
    assert "in use" in picker.card("cuda:0").inner_text()
    assert picker.order == ORDER
    picker.button("Look at the machine").click()
    wait_until(lambda: picker.order[:3] == ["cuda:2", "cuda:7", "cuda:0"], page=page)


def test_nothing_is_read_while_nobody_looks(shown):
    page, picker = shown
    reads = "picker._thread is not None"
    wait_until(lambda: page.value(reads), page=page)
    page.output(0).evaluate("(node) => { node.style.display = 'none' }")
    wait_until(lambda: not page.value(reads), page=page)
    looks = page.value("source.looks")
    page.execute("source.uses[source.machine.gpus[0].uuid] = use(100.0, 55, 60, 400, user('zoe', 99.0))")
    assert page.value("source.looks") == looks, "there is no thread that could"
    page.output(0).evaluate("(node) => { node.style.display = '' }")
    picker.wait_text("zoe")
    assert picker.order[:3] == ["cuda:2", "cuda:7", "cuda:0"], "who comes back finds the free ones first"
    page.cell(0).evaluate("(node) => node.querySelector('.jp-OutputArea-output').remove()")
    wait_until(lambda: not page.value(reads), page=page)


def test_changes_are_told_to_those_who_cannot_see_them(shown):
    page, picker = shown
    said = picker.root.locator("[aria-live=polite]")
    picker.card("cuda:2").click()
    wait_until(lambda: said.inner_text() == "Picked: cuda:2.", page=page)
    page.execute("source.uses[source.machine.gpus[0].uuid] = use(100.0, 55, 60, 400, user('zoe', 99.0))")
    wait_until(lambda: said.inner_text() == "cuda:0 is in use now.", page=page)


def test_an_error_of_ours_stands_in_the_picker(shown):
    page, picker = shown
    page.execute("source.look = lambda gpus: 1 / 0")
    picker.wait_text(re.compile("The picker itself failed: ZeroDivisionError"))


# ---- the line


def test_the_line_is_copied(shown):
    page, picker = shown
    picker.card("cuda:2").click()
    picker.wait_line("cuda:2")
    page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    picker.button("Copy the line").click()
    picker.root.get_by_text("Copied", exact=True).wait_for()
    assert page.page.evaluate("() => navigator.clipboard.readText()") == "%%elastic_launch devices=cuda:2"
    page.page.context.clear_permissions()


def test_where_the_clipboard_is_closed_the_line_is_selected(shown):
    page, picker = shown
    assert picker.button("Copy the line").is_disabled()
    picker.card("cuda:2").click()
    picker.wait_line("cuda:2")
    page.page.evaluate("() => Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })")
    words = "The line is selected: copy it with Ctrl+C."
    picker.button("Copy the line").click()
    picker.wait_text(words)
    assert page.page.evaluate("() => String(getSelection())") == "%%elastic_launch devices=cuda:2"
    page.execute("source.uses[source.machine.gpus[0].uuid] = use(100.0, 55, 60, 400, user('zoe', 99.0))")
    picker.card("cuda:0").get_by_text("zoe").wait_for()  # what the kernel says meanwhile does not take the words away
    picker.wait_text(words)
    picker.card("cuda:3").click()
    picker.wait_line("cuda:2,3")
    assert not picker.root.get_by_text(words).is_visible(), "the line is another now, and is not selected"
    page.page.evaluate("() => { delete navigator.clipboard }")


# ---- keyboard


@pytest.mark.parametrize("app", ["lab", "notebook7"])
@pytest.mark.parametrize("how", ["pointer", "keyboard"])
def test_no_key_on_a_focused_control_touches_the_cells(desk, app, how):
    page = desk("'before'", SHOW, "'after'", app=app)
    page.run_cell(1)
    picker = Picker(page, 1)
    picker.wait_text("Nothing is picked yet.")
    before = page.cells().split()[0]
    for control in (picker.box("cuda:0"), picker.button("Pick nothing"), picker.root.get_by_role("spinbutton")):
        for keys in (["x"], ["d", "d"], ["m"], ["a"], ["b"], ["Delete"], ["Shift+Enter"]):
            control.click() if how == "pointer" else control.focus()
            page.press(*keys)
            page.next_frames()
            assert page.cells().split()[0] == before, keys


def test_space_picks_and_every_control_has_a_name_and_is_reached_by_tab(shown):
    page, picker = shown
    picker.box("cuda:0").focus()
    page.press("Space")
    picker.wait_line("cuda:0")
    names = """(root) => [...root.querySelectorAll('button, input')].filter(node => node.checkVisibility() && !node.disabled)
        .map((node, i) => { node.dataset.control = i; return node.ariaLabel || node.textContent })"""
    found = picker.root.evaluate(names)
    assert len(found) == 3 + 8 + 3 + 1
    assert all(found)
    picker.root.locator("[data-control='0']").focus()
    reached = [0]
    for _ in found[1:]:
        page.press("Tab")
        reached.append(int(page.page.evaluate("() => document.activeElement.dataset.control ?? -1")))
    assert reached == list(range(len(found)))


# ---- without its kernel


def test_a_restarted_kernel_is_told_and_nothing_can_be_pressed(open_notebook):
    page = open_notebook(SHOW)
    page.run_cell(0)
    picker = Picker(page)
    picker.card("cuda:2").click()
    picker.wait_line("cuda:2")
    page.restart_kernel()
    picker.wait_text(re.compile(r"The kernel is gone\. What is shown is from "))
    controls = picker.root.locator("button:visible:not(.ice-copy), input")
    assert all(control.is_disabled() for control in controls.all())
    assert picker.card("cuda:2").is_visible()
    page.wait_idle(60)  # a server cannot end a kernel that is just starting


@pytest.fixture(scope="module")
def executed(lab, tmp_path_factory):
    """A notebook with a picker as `nbconvert --execute` leaves it, with the state of its widgets."""
    folder = tmp_path_factory.mktemp("executed")
    metadata = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SHOW)], metadata=metadata), folder / "given.ipynb")
    command = ["nbconvert", "--execute", "--to", "notebook", "--output", "made.ipynb", "given.ipynb"]
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=lab.variables(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "made.ipynb").stat().st_size < 60_000
    return nbformat.read(folder / "made.ipynb", as_version=4)


@pytest.mark.parametrize("app", ["lab", "notebook7"])
@pytest.mark.parametrize("has_state", [True, False], ids=["state stored", "no state"])
def test_a_notebook_that_is_opened_again_shows_a_saved_view_or_says_what_to_do(executed, open_notebook, server_of, app, has_state):
    server = server_of(app)
    copy = nbformat.from_dict({**executed, "metadata": {**executed.metadata, "copied": f"{app} {has_state}"}})
    if not has_state:
        del copy.metadata["widgets"]
    name = f"picker-{app}-{has_state}.ipynb"
    nbformat.write(copy, server.root / name)
    server.sign(copy)
    page = open_notebook(name=name, app=app)
    if has_state:
        picker = Picker(page)
        picker.wait_text(re.compile("A saved view: no kernel answers it"))
        assert picker.box("cuda:0").is_disabled()
        assert not page.output(0).locator(".ice-devices-foot").is_visible()
    else:
        page.wait_output(0, "Device picker: run this cell to choose devices.")
        wait_until(lambda: not any(re.search("Error displaying|Loading widget", text) for text in page.outputs(0)), page=page)


# ---- looks


def test_every_text_can_be_read_in_both_themes(shown):
    page, picker = shown
    picker.card("cuda:0").click()
    picker.wait_line("cuda:0")
    page.execute("source.look = lambda gpus: 1 / 0")
    picker.wait_text(re.compile("The picker itself failed"))
    try:
        for dark in (False, True):
            page.set_theme(dark=dark)
            page.next_frames()
            assert unreadable(picker.root) == []
    finally:
        page.set_theme(dark=False)


def test_it_fits_into_every_width_without_scrolling_sideways(shown):
    page, picker = shown
    size = page.page.viewport_size
    cut = """(root) => [root, ...root.querySelectorAll('*')].filter((node) => node.checkVisibility() && node.scrollWidth > node.clientWidth + 1
        && getComputedStyle(node).textOverflow !== 'ellipsis' && getComputedStyle(node).display !== 'inline' && !node.matches('.ice-said'))
        .map((node) => node.className + ' ' + node.scrollWidth + ' > ' + node.clientWidth)"""
    try:
        for width in (1250, 700, 620, 480, 360):
            page.set_width(width)
            assert picker.root.evaluate(cut) == [], width
            assert picker.root.locator("code").is_visible()
    finally:
        page.page.set_viewport_size(size)
