"""The device picker without a browser: what it sends is recorded, the page's words are played, the machines are recorded ones."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from shutil import which
from types import SimpleNamespace

import pytest
from recorded_comms import record_comms
from recorded_machines import TRAIN, eight, masked, reticent, use, with_mig, without_gpus
from support import wait_until

import ice_notebook
from ice_notebook import DevicePicker, ElasticLauncher
from ice_notebook.devices import machine, picked
from ice_notebook.devices.grammar import convert_devices, parse_devices
from ice_notebook.devices.machine import Inventory
from ice_notebook.errors import DeviceError
from ice_notebook.host import notebook
from ice_notebook.ui.widgets import device_picker, kernel
from ice_notebook.ui.widgets.device_picker import FIRST_LOOK_S, LOOK_S, READ_EVERY_S, ThisMachine
from ice_notebook.ui.widgets.picker_state import Selection, listing, select, snapshot

SCRIPT = Path(device_picker.__file__).with_suffix(".js")


class Page:
    """What one page hears and says."""

    def __init__(self, picker):
        self.picker, self.said = picker, 0

    def heard(self):
        """Return the states that came since the last call."""
        sent = self.picker.comm.sent
        states = [data["state"]["state"] for _, data, _ in sent if "state" in data.get("state", {})]
        sent.clear()
        return states

    def says(self, kind, *, nonce=None, **content):
        self.said += 1
        content = {"kind": kind, "tab": "tab", "nonce": nonce or f"n{self.said}", **content}
        self.picker._handle_msg({"content": {"data": {"method": "custom", "content": content}}, "buffers": []})
        return self.picker.state


@pytest.fixture
def opened(monkeypatch):
    record_comms(monkeypatch)
    pickers = []

    def open_picker(source=None, devices=None):
        picker = DevicePicker(devices, source=source or eight())
        pickers.append(picker)
        return picker, Page(picker)

    yield open_picker
    for picker in pickers:
        thread = picker._thread
        picker.close()
        if thread is not None:
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
def shell(monkeypatch):
    """A shell of IPython's for what hangs on it."""
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setattr(notebook, "current_shell", lambda: shell)
    monkeypatch.setattr(kernel, "why_no_panel", str)  # its page draws widgets, whatever is installed here
    return shell


def uuid(picker, number):
    return picker.state["gpus"][number]["uuid"]


def card(picker, number):
    return picker.state["gpus"][number]


# ---- what it shows


def test_the_first_message_has_all_that_a_page_draws(opened):
    page = opened()[1]
    state = page.heard()[0]
    assert [gpu["id"] for gpu in state["gpus"]] == [f"cuda:{n}" for n in range(8)]
    assert [gpu["status"] for gpu in state["gpus"]] == ["free", "in use", "free", "yours", "yours", "in use", "in use", "free"]
    assert (state["n_cores"], state["text"], state["label"], state["rev"]) == (192, "", "recorded: eight H200", 1)
    assert (state["variable"], state["n_hidden"], state["no_gpu"]) == (None, 0, "")


def test_a_card_has_meters_and_who_uses_the_gpu(opened):
    picker, _ = opened()
    busy = card(picker, 1)
    assert (busy["name"], busy["load"], busy["temperature"], busy["power"], busy["limit"]) == ("NVIDIA H200", 97, 71, 654, 700.0)
    assert busy["used"] < busy["memory"]
    assert [(one["who"], one["command"]) for one in busy["processes"]] == [("alice", "python"), ("alice", "tensorboard")]
    assert (card(picker, 3)["runs"], card(picker, 3)["processes"]) == ([TRAIN], [])
    assert card(picker, 2)["processes"][0]["who"] == "this notebook"
    assert (card(picker, 6)["processes"][0]["who"], card(picker, 6)["processes"][0]["pid"]) == ("another user or container", None)


def test_the_visible_list_is_respected_and_shown_with_both_names(opened):
    picker, _ = opened(masked("5,6"))
    assert [(gpu["id"], gpu["physical"]) for gpu in picker.state["gpus"]] == [("cuda:0", "cuda:5"), ("cuda:1", "cuda:6")]
    assert (picker.state["variable"], picker.state["n_hidden"]) == ("5,6", 6)


def test_a_list_that_hides_every_gpu_is_the_reason_for_none(opened):
    picker, _ = opened(masked(""))
    assert picker.state["gpus"] == []
    assert picker.state["no_gpu"] == "CUDA_VISIBLE_DEVICES='' hides the 8 that this machine has"


def test_instances_are_cards_with_their_board(opened):
    picker, _ = opened(with_mig())
    assert [(gpu["id"], gpu["physical"], gpu["part"]) for gpu in picker.state["gpus"][1:3]] == [
        ("cuda:1", "cuda:0:1", "MIG instance 1 of board 0"),
        ("cuda:2", "cuda:0:2", "MIG instance 2 of board 0"),
    ]
    assert card(picker, 1)["load"] is None


def test_what_a_driver_does_not_say_is_unknown_and_not_free(opened):
    picker, page = opened(reticent())
    assert (card(picker, 0)["status"], card(picker, 0)["used"], card(picker, 0)["power"]) == ("unknown", None, None)
    assert page.says("free")["text"] == ""


def test_a_machine_without_gpus_says_why_in_half_a_sentence(opened):
    picker, _ = opened(without_gpus())
    assert (picker.state["gpus"], picker.state["no_gpu"]) == ([], "this machine has no NVIDIA driver")


def test_this_machine_is_read_without_touching_cuda(opened):
    picker, _ = opened(ThisMachine())
    assert picker.state["n_cores"] == machine.count_cores()
    assert len(picker.state["gpus"]) == len(machine.inventory().visible)
    assert picker.state["gpus"] or picker.state["no_gpu"]


def test_a_picker_has_one_text_on_every_machine(opened):
    assert {repr(opened(source, devices)[0]) for source, devices in ((eight(), "cuda:1"), (without_gpus(), None))} == {
        "DevicePicker()"
    }


# ---- what is picked


def test_a_click_picks_and_another_one_drops(opened):
    picker, page = opened()
    assert page.says("pick", uuids=[uuid(picker, 2)], on=True)["text"] == "cuda:2"
    assert page.says("pick", uuids=[uuid(picker, 0)], on=True)["text"] == "cuda:0,2"
    assert [gpu["id"] for gpu in picker.state["gpus"] if gpu["picked"]] == ["cuda:0", "cuda:2"]
    assert picker.devices == "cuda:0,2"
    assert page.says("pick", uuids=[uuid(picker, 0)], on=False)["text"] == "cuda:2"


def test_a_repeated_word_of_a_page_is_taken_up_once(opened):
    picker, page = opened()
    page.says("pick", uuids=[uuid(picker, 0)], on=True, nonce="first")
    page.says("none", nonce="second")
    state = page.says("pick", uuids=[uuid(picker, 0)], on=True, nonce="first")
    assert state["text"] == ""
    assert state["taken"] == ["first", "second"]


def test_all_free_picks_what_nobody_uses_now(opened):
    source = eight()
    picker, page = opened(source)
    page.says("pick", uuids=[uuid(picker, 1)], on=True)
    source.uses[uuid(picker, 7)] = source.uses[uuid(picker, 1)]
    assert page.says("free")["text"] == "cuda:0,2"
    assert card(picker, 7)["status"] == "in use"


def test_ranks_on_the_cpu_and_gpus_exclude_each_other(opened):
    picker, page = opened()
    page.says("pick", uuids=[uuid(picker, 0)], on=True)
    assert page.says("cpu", n=0)["text"] == "cuda:0"
    assert page.says("cpu", n=4)["text"] == "cpu:0-3"
    assert page.says("pick", uuids=[uuid(picker, 5)], on=True)["text"] == "cuda:5"
    assert page.says("cpu", n=2)["n_cpu"] == 2
    assert page.says("cpu", n=0)["text"] == ""
    assert page.says("cpu", n=10**9)["n_cpu"] == 1024
    assert page.says("none")["text"] == ""


@pytest.mark.parametrize(
    ("devices", "text"),
    [
        ("cuda:2,0", "cuda:2,0"),
        ("cuda:free", "cuda:0,2,7"),
        ("cuda:free:2", "cuda:0,2"),
        ([0, 1, 2], "cuda:0-2"),
        ("auto", "cuda:0"),
        ("cpu:0-3", "cpu:0-3"),
        ("cpu", "cpu:0"),
        ("cuda:GPU-3", "cuda:3"),
        (None, ""),
    ],
)
def test_code_picks_too(opened, devices, text):
    picker, page = opened(devices=devices)
    assert (picker.devices, page.heard()[0]["text"]) == (text, text)
    other, page = opened()
    other.devices = devices
    assert (other.devices, page.heard()[-1]["text"]) == (text, text)


def test_what_code_cannot_pick_is_an_error_and_changes_nothing(opened):
    picker, _ = opened(devices="cuda:1")
    for devices, sentence in (
        ("cuda:0,0", "names a device twice"),
        ("cuda:9", "does not exist here"),
        ("cuda:free:7", "3 are free. In use are cuda:1: alice"),
    ):
        with pytest.raises(DeviceError, match=sentence):
            picker.devices = devices
    assert picker.devices == "cuda:1"
    with pytest.raises(DeviceError, match="this machine has no NVIDIA driver"):
        opened(without_gpus(), "cuda:0")


def test_a_gpu_that_is_gone_is_no_longer_picked(opened):
    source = eight()
    picker, page = opened(source, "cuda:0,7")
    source.machine = replace(source.machine, gpus=source.machine.gpus[:4])
    assert page.says("refresh")["text"] == "cuda:0"
    assert len(picker.state["gpus"]) == 4


def test_the_text_means_the_same_gpus_to_a_launch():
    inventory = masked("6,5").machine
    chosen = select(parse_devices("cuda:1"), inventory)
    assert chosen == Selection(gpus=(inventory.gpus[5].uuid,))
    assert select(parse_devices(chosen.text(inventory)), inventory) == chosen
    assert snapshot(inventory, {}, chosen)["gpus"][1]["picked"]


# ---- a value of every launch


def test_a_picker_is_a_value_of_devices(opened):
    picker, page = opened(devices="cuda:2,5")
    assert str(convert_devices(picker)) == "cuda:2,5"
    assert ElasticLauncher(picker)["devices"] == parse_devices("cuda:2,5")
    page.says("none")
    with pytest.raises(DeviceError, match=r"devices=DevicePicker\(\): nothing is selected in it"):
        ElasticLauncher(picker)


def test_outside_ipython_nothing_is_set_for_launches_that_name_no_devices():
    assert picked.picked_devices() is None


def test_a_launch_without_devices_takes_what_the_notebook_has_set(opened, shell, monkeypatch):
    monkeypatch.setattr(machine, "inventory", lambda **_: Inventory(n_cores=4, problem="this machine has no NVIDIA driver"))
    picker, page = opened(without_gpus())
    picked.choose(picker)
    launcher = ElasticLauncher()
    assert launcher.devices == ("cpu:0",), "nothing is picked yet"
    page.says("cpu", n=3)
    assert launcher.devices == ("cpu:0", "cpu:1", "cpu:2")
    assert ElasticLauncher("cpu:0,1").devices == ("cpu:0", "cpu:1")
    assert ElasticLauncher(nproc_per_node=6).devices == ("cpu:0", "cpu:1", "cpu:2", "cpu:0", "cpu:1", "cpu:2"), (
        "it counts as a list"
    )
    picked.choose(parse_devices("cuda:0"))
    with pytest.raises(DeviceError, match=r"They were set with %elastic_devices .*; %elastic_devices off forgets them"):
        _ = launcher.devices
    with pytest.raises(DeviceError) as caught:
        _ = ElasticLauncher("cuda:0").devices
    assert "%elastic_devices" not in str(caught.value)
    picked.choose(None)
    assert launcher.devices == ("cpu:0",)


def test_a_picker_says_whether_it_is_the_one_that_counts(opened, shell):
    picker, _ = opened()
    assert picker.state["is_default"] is False
    picked.choose(picker)
    picker.refresh()
    assert picker.state["is_default"] is True


# ---- readings


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

        def time(self):
            return 1_000_000.0 + self.now

    clock = Clock()
    monkeypatch.setattr(device_picker, "time", clock)
    return clock


class NoThread:
    """Stands for the thread that reads; the test takes its turns."""

    def __init__(self, **_):
        pass

    def start(self):
        pass

    def is_alive(self):
        return False

    def join(self, timeout):
        pass


@pytest.fixture
def by_hand(monkeypatch, clock):
    monkeypatch.setattr(device_picker.threading, "Thread", NoThread)
    return clock


def test_readings_are_taken_only_while_somebody_looks(opened, by_hand):
    source = eight()
    picker, page = opened(source)
    assert picker._thread is None
    assert source.looks == 1, "the first picture"
    page.says("look")
    assert picker._turn() == READ_EVERY_S
    assert source.looks == 2
    page.says("away")
    assert picker._turn() is None
    assert (source.looks, picker._thread) == (2, None)


def test_a_page_that_has_died_is_not_believed_for_ever(opened, by_hand):
    picker, page = opened()
    page.says("look")
    by_hand.now += LOOK_S - 1
    assert picker._turn() is not None
    page.says("look")
    by_hand.now += LOOK_S - 1
    assert picker._turn() is not None
    by_hand.now += 2
    assert picker._turn() is None


def test_one_tab_that_goes_away_leaves_the_other_its_readings(opened, by_hand):
    picker, page = opened()
    page.says("look", tab="one")
    page.says("look", tab="two")
    page.says("away", tab="one")
    assert picker._turn() is not None
    page.says("away", tab="two")
    assert picker._turn() is None


def test_a_picker_that_is_displayed_is_read_until_its_page_can_speak(opened, by_hand, shell, monkeypatch):
    picker, _ = opened()
    shown = []
    monkeypatch.setattr(notebook, "display", shown.append)
    picker._ipython_display_()
    assert list(map(repr, shown)) == ["DevicePicker()", "Device picker: run this cell to choose devices."]
    assert picker._turn() is not None
    by_hand.now += FIRST_LOOK_S + 1
    assert picker._turn() is None


def test_outside_a_kernel_displaying_starts_nothing(opened):
    picker, _ = opened()
    with pytest.raises(NotImplementedError):
        picker._ipython_display_()
    assert picker._thread is None


def test_each_reading_is_sent_with_its_time_and_a_new_revision(opened, by_hand):
    source = eight()
    picker, page = opened(source)
    page.says("look")
    page.heard()
    by_hand.now += 2
    source.uses[uuid(picker, 0)] = use(12.5, 40, 50, 300)
    picker._turn()
    (state,) = page.heard()
    assert (state["gpus"][0]["load"], state["gpus"][0]["status"], state["read_at"]) == (40, "in use", 1_000_102.0)
    assert state["rev"] > 1


def test_the_thread_ends_when_nobody_looks_any_more(opened, monkeypatch):
    monkeypatch.setattr(device_picker, "READ_EVERY_S", 0.01)
    source = eight()
    picker, page = opened(source)
    page.says("look")
    thread = picker._thread
    wait_until(lambda: source.looks > 5, 5)
    page.says("away")
    thread.join(5)
    assert not thread.is_alive()
    assert picker._thread is None
    page.says("look")
    assert picker._thread is not None


def test_a_closed_picker_reads_no_more(opened):
    picker, page = opened()
    page.says("look")
    thread = picker._thread
    picker.close()
    thread.join(5)
    assert not thread.is_alive()


# ---- without a page


def test_where_there_is_no_page_the_machine_is_told_in_lines():
    source = with_mig()
    assert listing(source.machine, source.uses) == [
        "cuda:0  NVIDIA H200 MIG 1g.18gb  102 MiB of 16 GiB  free",
        "cuda:1  NVIDIA H200 MIG 1g.18gb  12.3 GiB of 16 GiB  alice (python, 12.2 GiB)",
        "cuda:2  NVIDIA H200 MIG 1g.18gb  102 MiB of 16 GiB  free",
        "cuda:3  NVIDIA H200  0 B of 140 GiB  free",
        "64 CPU cores",
    ]
    assert listing(reticent().machine, {}) == ["cuda:0  NVIDIA GB10  the driver does not say", "20 CPU cores"]
    assert listing(Inventory(problem="this machine has no NVIDIA driver"), {}) == [
        "No GPU can be used here: this machine has no NVIDIA driver.",
        "1 CPU core",
    ]


# ---- what goes wrong


def test_an_error_of_a_reading_is_shown_and_the_next_one_follows(opened, by_hand, monkeypatch):
    source = eight()
    picker, page = opened(source)
    page.says("look")
    monkeypatch.setattr(source, "look", lambda gpus: 1 / 0)
    assert picker._turn() == READ_EVERY_S
    assert picker.state["problems"][0].startswith("ZeroDivisionError: division by zero (test_device_picker.py, line ")
    assert picker._turn() == READ_EVERY_S
    assert len(picker.state["problems"]) == 1


@pytest.mark.parametrize("content", [{"kind": "dance"}, {"kind": "pick"}, {"kind": "cpu", "n": "many"}, {}])
def test_a_message_that_cannot_be_read_is_shown_and_harms_nothing(opened, content):
    picker, page = opened(devices="cuda:1")
    page.picker._handle_msg({"content": {"data": {"method": "custom", "content": {"nonce": "x", **content}}}, "buffers": []})
    assert (picker.devices, len(picker.state["problems"]), picker.state["taken"]) == ("cuda:1", 1, ["x"])


def test_a_refused_beginning_leaves_no_half_made_widget_that_complains(opened, recwarn):
    with pytest.raises(DeviceError):
        DevicePicker("banana", source=eight())
    assert not recwarn.list


# ---- the script's pure functions


def run_script(expression, *values):
    """Return the value of an expression over what the script exports."""
    address = "data:text/javascript;base64," + base64.b64encode(SCRIPT.read_bytes()).decode()
    call = f"console.log(JSON.stringify(({expression})(module, ...JSON.parse(process.argv[1]))))"
    program = f"import({address!r}).then((module) => {call})"
    done = subprocess.run(["node", "-e", program, json.dumps(values)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_node = pytest.mark.skipif(which("node") is None, reason="needs node")


@needs_node
def test_what_is_asked_for_is_drawn_before_the_kernel_has_answered(opened):
    state = opened(devices="cuda:0")[0].state
    first, second = (gpu["uuid"] for gpu in state["gpus"][:2])
    wanted = "(m, state, asked) => { const { gpus, cpu } = m.wanted(state, asked); return [[...gpus], cpu] }"
    assert run_script(wanted, state, []) == [[first], 0]
    assert run_script(wanted, state, [{"kind": "pick", "uuids": [second], "on": True}]) == [[first, second], 0]
    assert run_script(wanted, state, [{"kind": "cpu", "n": 3}]) == [[], 3]
    assert run_script(wanted, state, [{"kind": "cpu", "n": 0}]) == [[first], 0]
    assert run_script(wanted, state, [{"kind": "cpu", "n": 3}, {"kind": "pick", "uuids": [second], "on": True}]) == [[second], 0]
    assert run_script(wanted, state, [{"kind": "none"}]) == [[], 0]


@needs_node
def test_free_cards_come_first_and_changes_are_told(opened):
    state = opened()[0].state
    order = run_script("(m, state) => m.inOrder(state.gpus)", state)
    assert [gpu["id"] for uuid in order for gpu in state["gpus"] if gpu["uuid"] == uuid][:4] == [
        "cuda:0",
        "cuda:2",
        "cuda:7",
        "cuda:1",
    ]
    after = json.loads(json.dumps(state)) | {"text": "cuda:0"}
    after["gpus"][7]["status"] = "in use"
    assert run_script("(m, before, after) => m.news(before, after)", state, after) == "Picked: cuda:0. cuda:7 is in use now."
    assert run_script("(m, after) => m.news(null, after)", after) == ""


@needs_node
def test_a_crowd_is_cut_and_counted(opened):
    state = opened()[0].state
    users = run_script("(m, gpu) => m.users(gpu)", state["gpus"][5])
    assert users[0] == ["bob", "python", "9.5 GiB"]
    assert (len(users), users[-1]) == (5, ["", "and 2 more", ""])
    assert run_script("(m, gpu) => m.users(gpu)", state["gpus"][3]) == [["yours: run", TRAIN, ""]]
    assert run_script("(m, gpu) => m.heat(gpu)", state["gpus"][1]) == "71 °C · 654 / 700 W"
    assert run_script("(m) => [0, 1e9, 131.2 * 2 ** 30, 99.97 * 2 ** 30].map(m.gib)") == ["0.0", "0.9", "131", "100"]


def test_the_picker_is_public():
    assert ice_notebook.DevicePicker is DevicePicker
