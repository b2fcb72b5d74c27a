"""The option table of a launch: every option by every way in, and what goes together."""

import contextlib
import pathlib

import pytest

from ice_notebook.devices.grammar import Devices, Gpu, Inventory
from ice_notebook.errors import DeviceError, IceNotebookError, OptionError, options_with_dashes
from ice_notebook.options.help_pages import help_text
from ice_notebook.options.launch_options import LATER, OF_TORCHRUN, TABLE, LaunchOptions
from ice_notebook.options.line import read_command, read_line
from ice_notebook.options.table import Surface

CPU_ONLY = Inventory(n_cores=2, problem="this machine has no NVIDIA driver")
EVERY_OPTION = pytest.mark.parametrize("option", list(TABLE), ids=lambda option: option.name)

# The constructor call that the documents of ice-learn show.
DOCUMENTED = {
    "devices": "auto",
    "nnodes": "1:1",
    "dist_backend": "auto",
    "rdzv_id": "none",
    "rdzv_endpoint": "",
    "rdzv_backend": "static",
    "rdzv_configs": "",
    "standalone": False,
    "max_restarts": 0,
    "monitor_interval": 5,
    "start_method": "spawn",
    "redirects": "0",
    "tee": "0",
    "log_dir": None,
    "role": "default",
    "node_rank": 0,
    "master_addr": "127.0.0.1",
    "master_port": None,
    "omp_num_threads": 1,
}


def refusal(**asked):
    with pytest.raises(OptionError) as caught:
        LaunchOptions.of(asked).validate()
    return str(caught.value)


def test_the_documented_call_works():
    options = LaunchOptions.of(DOCUMENTED).validate()
    assert options.devices == Devices("auto")
    assert (options.redirects, options.tee, options.nnodes, options.monitor_interval) == (0, 0, (1, 1), 5.0)


def test_devices_is_the_first_option():
    assert next(iter(TABLE)).name == "devices"
    assert LaunchOptions("cuda:*").devices == Devices("cuda", ("*",))


def test_the_defaults_are_torchs_and_no_port_is_among_them():
    options = LaunchOptions()
    assert (options.max_restarts, options.monitor_interval, options.start_method, options.role) == (0, 0.1, "spawn", "default")
    assert (options.rdzv_id, options.rdzv_backend, options.rdzv_endpoint, options.rdzv_configs) == ("none", "static", "", {})
    assert (options.nnodes, options.node_rank, options.master_addr, options.master_port) == ((1, 1), 0, "127.0.0.1", None)
    assert (options.redirects, options.tee, options.log_dir, options.omp_num_threads, options.devices) == (0, 0, None, None, None)
    assert options.asked() == {}
    assert repr(options) == "LaunchOptions()"


@EVERY_OPTION
def test_every_option_has_a_sentence_a_readable_default_and_words_for_what_it_takes(option):
    assert option.sentence.endswith(".")
    assert option.default_text
    assert option.grammar.allowed
    assert option.example
    assert LaunchOptions.__dataclass_fields__[option.name].type


@EVERY_OPTION
def test_every_example_is_read_the_same_by_a_magic_and_by_python(option):
    surface = next(place for place in (Surface.CELL, Surface.LINE, Surface.CLI) if place in option.surfaces)
    if surface is Surface.CLI:
        read = read_command([f"--{option.name}={option.example}"], TABLE)[0][option.name]
    else:
        read = read_line(f"{option.name}={option.example}", TABLE, {}, surface)[option.name]
    assert LaunchOptions.of({option.name: read}, surface).asked().get(option.name, option.convert(option.default)) == read
    if not option.grammar.is_expression:
        assert (
            LaunchOptions.of({option.name: option.example}, surface).asked()
            == LaunchOptions.of({option.name: read}, surface).asked()
        )


@EVERY_OPTION
def test_every_default_stays_what_it_is_when_converted_again(option):
    once = option.convert(option.default)
    assert option.convert(once) == once


@EVERY_OPTION
def test_a_value_that_makes_no_sense_is_refused_by_name(option):
    with pytest.raises(IceNotebookError) as caught:
        option.convert(1.5j)
    assert str(caught.value).startswith(f"{option.name}=1.5j")


@EVERY_OPTION
def test_a_value_that_is_nested_too_deep_for_its_repr_is_refused_by_name(option):
    nested = []
    for _ in range(5_000):
        nested = [nested]
    with contextlib.suppress(IceNotebookError):  # it may be an argument
        option.convert(nested)


def test_names_take_dashes_and_aliases_from_python_too():
    options = LaunchOptions.of({"max-restarts": "2", "rdzv_conf": "timeout=60"})
    assert (options.max_restarts, options.rdzv_configs) == (2, {"timeout": "60"})


def test_a_change_makes_new_options_and_keeps_the_others():
    options = LaunchOptions(devices="cpu:0,1")
    changed = options.changed(max_restarts=2, tee="3")
    assert (changed.max_restarts, changed.tee, str(changed.devices)) == (2, 3, "cpu:0,1")
    assert options.max_restarts == 0


def test_the_repr_is_the_call_that_makes_the_options():
    options = LaunchOptions(devices="cuda:0-2,7", env={"A": 1}, nnodes="1:1", args=(1, "x"))
    assert repr(options) == "LaunchOptions(devices='cuda:0-2,7', args=(1, 'x'), env='A=1')"
    assert repr(eval(repr(options))) == repr(options)


def test_an_unknown_name_is_refused_with_a_suggestion():
    assert "Did you mean 'devices'?" in refusal(devcies="cpu")
    with pytest.raises(OptionError, match="'sped' is not an option"):
        LaunchOptions().changed(sped=1)


@pytest.mark.parametrize("name", sorted(LATER | OF_TORCHRUN))
def test_an_option_that_comes_later_is_refused_by_name(name):
    assert f"{name!r} is not available in this version: " in refusal(**{name: True})


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            {"module": True, "no_python": True},
            "module and no_python exclude each other: they say two things of what is launched; give one.",
        ),
        ({"run_path": True, "module": True}, "module and run_path exclude each other"),
        (
            {"no_python": True, "use_env": False},
            "no_python and use_env=false exclude each other: a program is not given --local-rank=N",
        ),
        ({"standalone": True, "rdzv_endpoint": "localhost:1"}, "standalone and rdzv_endpoint=localhost:1 exclude each other"),
    ],
)
def test_options_of_scripts_that_exclude_each_other_are_refused(asked, sentence):
    with pytest.raises(OptionError) as caught:
        LaunchOptions.of(asked, Surface.LINE).validate()
    assert sentence in str(caught.value)


def test_options_of_a_call_are_refused_in_the_launcher():
    assert "'args' is not an option here" in refusal(args=(1,))
    assert "'background' is not an option here" in refusal(background=True)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"max_restarts": -1}, "max_restarts=-1 is not valid: expected a whole number of 0 or more."),
        ({"nproc_per_node": 0}, "nproc_per_node=0 is not valid: expected a whole number from 1 to 1024, auto, cpu or gpu."),
        ({"nproc_per_node": "many"}, "nproc_per_node='many' is not valid"),
        ({"monitor_interval": 0}, "monitor_interval=0 is not valid: expected a number of seconds above 0."),
        ({"grace": -1}, "grace=-1 is not valid: expected a number of seconds, 0 or more."),
        ({"nnodes": "2:1"}, "nnodes='2:1' is not valid: expected a number of nodes N, or a range MIN:MAX"),
        ({"redirects": "4"}, "redirects='4' is not valid: expected 0 (none), 1 (stdout), 2 (stderr) or 3 (both)"),
        ({"dist_backend": "nkkl"}, "dist_backend='nkkl' is not valid: expected auto, nccl, gloo or mpi"),
        ({"master_port": 70000}, "expected a whole number from 0 to 65535."),
        ({"rdzv_id": "a/b"}, "rdzv_id='a/b' is not valid: expected a word without blanks and slashes."),
        ({"rdzv_endpoint": "localhost:x"}, "rdzv_endpoint='localhost:x' is not valid"),
        ({"ui": "gui"}, "ui='gui' is not valid: expected auto, widget, text or none."),
        ({"dist_init": "maybe"}, "dist_init='maybe' is not valid: expected auto or no."),
        ({"env": "A"}, "env='A' is not valid: expected NAME=VALUE"),
        ({"log_dir": ""}, "log_dir='' is not valid: expected the path of a folder."),
        ({"start_method": "fork"}, "start_method='fork' is refused: forking a process with threads"),
        ({"start_method": "thread"}, "start_method='thread' is not valid: expected spawn or forkserver."),
        ({"nnodes": 2, "node_rank": 1}, "node_rank='1' is refused: the machine of the notebook is node 0. Launch there"),
        ({"nnodes": 2, "rdzv_configs": "rank=1"}, "rdzv_configs='rank=1' is refused: the machine of the notebook is node 0."),
        (
            {"nnodes": "1:4", "standalone": True},
            "standalone and nnodes=1:4 exclude each other: the first says that this node is alone",
        ),
        (
            {"nnodes": 2, "rdzv_configs": "join_timeout=soon"},
            "rdzv_configs='join_timeout=soon' is not valid: expected join_timeout=",
        ),
        (
            {"nnodes": "3:2"},
            "nnodes='3:2' is not valid: expected a number of nodes N, or a range MIN:MAX, with 1 <= MIN <= MAX.",
        ),
        ({"node_rank": 1}, "node_rank=1 is refused: there is one node, which is number 0, unless nnodes says otherwise."),
        ({"rdzv_configs": "rank=1"}, "rdzv_configs='rank=1' is refused"),
        ({"rdzv_backend": "etcd-v2"}, "rdzv_backend='etcd-v2' is refused: nodes meet without another service here"),
        (
            {"rdzv_endpoint": "localhost:29401", "master_port": 29402},
            "exclude each other: they name two ports for one meeting place; give one.",
        ),
        (
            {"nnodes": 2, "rdzv_endpoint": "localhost:29401", "master_port": 29401},
            "exclude each other: nodes meet at the one and ranks at the other; give two ports.",
        ),
        ({"env": "LOCAL_RANK=0"}, "env='LOCAL_RANK' is refused: the launcher sets it for each rank; leave it out."),
        ({"env": "TORCHELASTIC_RUN_ID=0"}, "env='TORCHELASTIC_RUN_ID' is refused"),
        ({"env": "CUDA_VISIBLE_DEVICES=1"}, "choose them with devices=cuda:…."),
        ({"env": "OMP_NUM_THREADS=2", "omp_num_threads": 2}, "omp_num_threads and env=OMP_NUM_THREADS exclude each other"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(asked, sentence):
    assert sentence in refusal(**asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"standalone": True},
        {"standalone": True, "master_addr": "localhost", "rdzv_backend": "c10d"},
        {"nnodes": 1},
        {"nnodes": "1:1", "node_rank": 0, "master_addr": "localhost", "master_port": 29501},
        {"master_addr": "[::1]"},
        {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "rdzv_configs": "timeout=60"},
        {"rdzv_endpoint": "[::1]:29401"},
        {"rdzv_endpoint": "127.0.0.1", "master_port": 29501},
        {"rdzv_endpoint": "localhost:29501", "master_port": 29501},
        {"master_addr": "192.168.1.1", "master_port": 29501},
        {"nnodes": 1, "node_rank": 0, "master_addr": "this-machine.example"},
        {"rdzv_endpoint": "node1:29401", "rdzv_backend": "c10d"},
        {"rdzv_endpoint": "[fe80::1]:29500"},
        {"env": {"CUDA_VISIBLE_DEVICES": ""}},
        {"dist_init": False},
        {"log_dir": pathlib.Path("logs")},
        {"by_value": [pathlib]},
    ],
)
def test_what_describes_this_one_node_is_accepted(asked):
    options = LaunchOptions.of(asked).validate()
    host, _ = options.meeting_place
    assert (options.has_other_nodes, host in {"127.0.0.1", "::1"}) == (False, True), "of one node the loopback will do"


@pytest.mark.parametrize(
    ("asked", "port"),
    [
        ({}, 0),
        ({"master_port": 29501}, 29501),
        ({"rdzv_endpoint": "localhost:29401"}, 29401),
        ({"rdzv_endpoint": "[::1]:29401"}, 29401),
        ({"rdzv_endpoint": "localhost"}, 0),
        ({"master_port": 29501, "standalone": True}, 0),
        ({"master_addr": "node1", "master_port": 29501}, 29501),
        ({"rdzv_endpoint": "node1:29401"}, 29401),
    ],
)
def test_a_port_is_taken_only_when_named(asked, port):
    assert LaunchOptions.of(asked).validate().meeting_place[1] == port


@pytest.mark.parametrize(
    ("asked", "address"),
    [
        ({"master_addr": "node1"}, "127.0.0.1"),
        ({"master_addr": "10.0.0.1"}, "127.0.0.1"),
        ({"rdzv_endpoint": "[fe80::1]:29401"}, "127.0.0.1"),
        ({"master_addr": "localhost"}, "127.0.0.1"),
        ({"master_addr": "127.0.0.2"}, "127.0.0.2"),
        ({"rdzv_endpoint": "[::1]:29401"}, "::1"),
    ],
)
def test_one_node_meets_on_the_loopback_by_whatever_name_it_is_called(asked, address):
    assert LaunchOptions.of(asked).validate().meeting_place[0] == address


def test_the_devices_of_the_picker_count_when_none_were_given():
    gpus = tuple(Gpu(uuid=f"GPU-{n}", name="H200", memory_bytes=1, board=n) for n in range(2))
    machine = Inventory(gpus=gpus, n_cores=4)
    picked = Devices("cuda", (1,))
    assert LaunchOptions().resolve_devices(machine, picked).text == "cuda:1"
    assert LaunchOptions(devices="auto").resolve_devices(machine, picked).text == "cuda:0"
    assert LaunchOptions(nproc_per_node="gpu").resolve_devices(machine).text == "cuda:0,1"
    assert LaunchOptions(nproc_per_node=2).resolve_devices(CPU_ONLY).text == "cpu:0,1"
    assert LaunchOptions(devices="cuda:*", dist_backend="gloo").resolve_devices(machine).dist_backend == "gloo"


def test_the_machine_is_asked_only_when_devices_are_resolved():
    options = LaunchOptions(devices="cuda:7").validate()
    with pytest.raises(DeviceError, match="no CUDA device can be used here"):
        options.resolve_devices(CPU_ONLY)


@pytest.mark.parametrize("surface", list(Surface))
def test_the_help_of_a_place_names_its_options_and_fits_a_page(surface):
    text = help_text(surface)
    with options_with_dashes() if surface is Surface.CLI else contextlib.nullcontext():
        assert all(f"\n  {option.usage(surface)}\n" in text for option in TABLE.on(surface))
    assert max(map(len, text.splitlines())) <= 100


# ---- several nodes -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "joining", "store"),
    [
        ({"nnodes": 2}, ("127.0.0.1", 0), ("127.0.0.1", 0)),
        ({"nnodes": 2, "master_addr": "10.0.0.1", "master_port": 29501}, ("10.0.0.1", 0), ("10.0.0.1", 29501)),
        ({"nnodes": "1:2", "rdzv_endpoint": "10.0.0.1:29401"}, ("10.0.0.1", 29401), ("10.0.0.1", 0)),
        ({"nnodes": 2, "rdzv_endpoint": "[::1]:29401", "master_port": 29501}, ("::1", 29401), ("::1", 29501)),
        ({"nnodes": 2, "rdzv_endpoint": "localhost"}, ("127.0.0.1", 0), ("127.0.0.1", 0)),
    ],
)
def test_nodes_join_at_the_endpoint_and_ranks_meet_at_the_master_port(asked, joining, store):
    options = LaunchOptions.of(asked).validate()
    assert (options.node_meeting_place, options.meeting_place) == (joining, store)


def test_the_times_of_a_meeting_are_settings_of_the_rendezvous():
    options = LaunchOptions.of({"nnodes": 2})
    assert (options.join_timeout_s, options.last_call_s) == (600.0, 1.0)
    options = LaunchOptions.of({"nnodes": 2, "rdzv_configs": "timeout=5,last_call_timeout=0"})
    assert (options.join_timeout_s, options.last_call_s) == (5.0, 0.0)
    assert LaunchOptions.of({"rdzv_configs": "timeout=5,join_timeout=7"}).join_timeout_s == 7.0


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"nnodes": 2}, "nnodes='2' is refused: all nodes must know where they meet: give master_addr and master_port."),
        ({"nnodes": "1:2", "master_port": 1}, "nnodes='1:2' is refused: a range needs rdzv_backend=c10d"),
        (
            {"nnodes": 2, "node_rank": 2, "master_port": 1},
            "node_rank='2' is refused: nodes are numbered from 0 to 1 with nnodes=2.",
        ),
        (
            {"nnodes": 2, "rdzv_backend": "c10d", "master_port": 1},
            "is refused: all nodes must know where they meet: give rdzv_endpoint",
        ),
        (
            {"nnodes": 2, "rdzv_backend": "c10d", "rdzv_endpoint": "10.0.0.1:29401", "master_port": 29401},
            "exclude each other: nodes meet at the one and ranks at the other; give two ports.",
        ),
        ({"nnodes": 2, "standalone": True}, "standalone and nnodes=2 exclude each other"),
        ({"node_rank": 1}, "node_rank=1 is refused: there is one node"),
    ],
)
def test_nodes_that_are_started_by_hand_must_be_able_to_meet(asked, sentence):
    with pytest.raises(OptionError) as caught:
        LaunchOptions.of(asked).validate_by_hand()
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "port"),
    [
        ({"nnodes": 2, "node_rank": 1, "master_addr": "10.0.0.1", "master_port": 29501}, 29501),
        ({"nnodes": 2, "node_rank": 1, "rdzv_endpoint": "10.0.0.1:29501"}, 29501),
        ({"nnodes": "1:2", "rdzv_backend": "c10d", "rdzv_endpoint": "10.0.0.1:29401"}, 29401),
    ],
)
def test_nodes_that_are_started_by_hand_meet_where_all_know(asked, port):
    assert LaunchOptions.of(asked).validate_by_hand().meeting_port == port
