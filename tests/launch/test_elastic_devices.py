"""`%elastic_devices` in a real kernel: what launches that name no devices use, and who says so."""

from __future__ import annotations

import pytest
from support import Kernel

LAUNCH = "%%elastic_launch ui=none -o run\nlauncher.rank"


def test_devices_that_were_set_are_used_by_launches_that_name_none_and_the_plan_says_so(shared_kernel: Kernel):
    outcome = shared_kernel.run("%elastic_devices cpu:0-2")
    assert outcome.text == "Launches that name no devices use cpu:0-2.\n", outcome.error
    assert not shared_kernel.run(LAUNCH).error
    assert shared_kernel.value("(run.plan.devices, run.plan.devices_by, dict(run.results))") == (
        "cpu:0-2",
        "picked",
        {0: 0, 1: 1, 2: 2},
    )
    assert not shared_kernel.run(LAUNCH.replace("ui=none", "ui=none devices=cpu:0")).error
    assert shared_kernel.value("(run.plan.devices, run.plan.devices_by)") == ("cpu:0", "")
    shared_kernel.run("from ice_notebook import ElasticLauncher")
    assert shared_kernel.value("ElasticLauncher().devices") == ("cpu:0", "cpu:1", "cpu:2")
    assert shared_kernel.run("%elastic_devices off").text == "Launches that name no devices use auto.\n"
    assert shared_kernel.value("len(ElasticLauncher().devices)") == 1


def test_the_picker_is_shown_again_until_something_else_is_set(shared_kernel: Kernel):
    shared_kernel.run("first = %elastic_devices")
    outcome = shared_kernel.run("%elastic_devices")
    assert [out["data"]["text/plain"] for out in outcome.outputs] == [
        "DevicePicker()",
        "Device picker: run this cell to choose devices.",
    ], outcome.error
    assert shared_kernel.value("(_ is first, first.state['is_default'])") == (True, True)
    shared_kernel.run("first.devices = 'cpu:0,1'")
    assert shared_kernel.value("ElasticLauncher().devices") == ("cpu:0", "cpu:1")
    shared_kernel.run("%elastic_devices cpu:0")
    assert shared_kernel.value("first.state['is_default']") is False
    assert shared_kernel.value("ElasticLauncher().devices") == ("cpu:0",)
    shared_kernel.run("%elastic_devices first")
    assert shared_kernel.value("(first.state['is_default'], ElasticLauncher().devices)") == (True, ("cpu:0", "cpu:1"))
    shared_kernel.run("%elastic_devices off")
    assert shared_kernel.value("first.state['is_default']") is False


def test_a_picker_is_a_value_of_devices_and_one_without_a_choice_is_an_error_at_launch(shared_kernel: Kernel):
    shared_kernel.run("from ice_notebook import DevicePicker\npicker = DevicePicker('cpu:0,1')")
    outcome = shared_kernel.run(LAUNCH.replace("ui=none", "ui=none devices=picker"))
    assert not outcome.error
    assert shared_kernel.value("(run.plan.devices, run.plan.devices_by, dict(run.results))") == ("cpu:0,1", "", {0: 0, 1: 1})
    shared_kernel.run("picker.devices = None")
    outcome = shared_kernel.run(LAUNCH.replace("ui=none", "devices=picker"))
    assert outcome.error == (
        "DeviceError: devices=DevicePicker(): nothing is selected in it. Tick a device, or give a number of ranks on the CPU."
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("banana", "No variable of this notebook is called 'banana' either."),
        ("cpu:free", "free works only with cuda"),
        ("first second", "'first second'"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_marks_the_cell_and_changes_nothing(shared_kernel: Kernel, line: str, sentence: str):
    shared_kernel.run("%elastic_devices cpu:0,1")
    outcome = shared_kernel.run(f"%elastic_devices {line}")
    assert outcome.error_name == "DeviceError"
    assert sentence in outcome.error_value
    assert shared_kernel.value("ElasticLauncher().devices") == ("cpu:0", "cpu:1")
    shared_kernel.run("%elastic_devices off")


def test_help_is_given_where_it_is_asked_for(shared_kernel: Kernel):
    assert shared_kernel.run("%elastic_devices --help").text.startswith("%elastic_devices [DEVICES | off]")


def test_devices_and_names_are_completed(shared_kernel: Kernel):
    shared_kernel.run("chosen = 'cpu:0'")
    for typed, offered in (("%elastic_devices cp", "cpu:*"), ("x = 1\n%elastic_devices ch", "chosen")):
        content = shared_kernel.client.complete(typed, reply=True, timeout=20)["content"]
        assert offered in content["matches"], content
        assert "%elastic_devices" in typed[: content["cursor_start"]]


def test_unloading_the_extension_forgets_them(shared_kernel: Kernel):
    shared_kernel.run("%elastic_devices cpu:0,1")
    shared_kernel.run("%unload_ext ice_notebook")
    assert shared_kernel.value("len(ElasticLauncher().devices)") == 1
    assert "not found" in shared_kernel.run("%elastic_devices").text
    shared_kernel.run("%load_ext ice_notebook")
