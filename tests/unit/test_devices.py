"""The device grammar, and what a text means on machines that are made up here."""

from types import SimpleNamespace

import pytest

from ice_notebook.devices.grammar import FORMS, Devices, Gpu, Inventory, complete, convert_devices, parse_devices, resolve
from ice_notebook.devices.machine import count_cores, inventory, read_gpus, torch_without_cuda, visible_gpus
from ice_notebook.errors import DeviceError, IceNotebookError


def board(number, uuid=None):
    return Gpu(uuid=uuid or f"GPU-{number}0000000-aaaa", name="H200", memory_bytes=150 << 30, board=number)


def instance(number, on_board=0):
    return Gpu(uuid=f"MIG-{on_board}{number}", name="H200 MIG 1g.18gb", memory_bytes=18 << 30, board=on_board, instance=number)


CPU_ONLY = Inventory(n_cores=2, problem="this machine has no NVIDIA driver")
FOUR = Inventory(gpus=tuple(board(n) for n in range(4)), n_cores=16)
MIG = Inventory(gpus=(instance(0), instance(1), instance(2), board(1)), n_cores=16)


def seeing(variable, machine=FOUR):
    return Inventory(gpus=machine.gpus, n_cores=machine.n_cores, cuda_visible_devices=variable)


def names(text, machine, **more):
    return [rank.name for rank in resolve(parse_devices(text), machine, **more).ranks]


# ---- text ↔ Devices


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("auto", "auto"),
        ("cpu", "cpu"),
        ("cuda", "cuda"),
        ("cuda:0", "cuda:0"),
        ("cuda:1,3", "cuda:1,3"),
        ("cuda:0-2,7", "cuda:0-2,7"),
        ("cuda:0,1,2,7", "cuda:0-2,7"),
        ("cuda:0-1", "cuda:0,1"),
        ("cuda:2,1,0", "cuda:2,1,0"),
        ("cuda:*", "cuda:*"),
        ("auto:*", "auto:*"),
        ("auto:0-1", "auto:0,1"),
        ("cpu:0-3", "cpu:0-3"),
        ("cuda:0,0", "cuda:0,0"),
        ("cuda:0, 1", "cuda:0,1"),
        (" cuda:0 ", "cuda:0"),
        ("cuda:0,cuda:1", "cuda:0,1"),
        ("cpu,cpu", "cpu:0,0"),
        ("cuda:GPU-8f3a,1", "cuda:GPU-8f3a,1"),
        ("cuda:MIG-11-22", "cuda:MIG-11-22"),
        ("cuda:free", "cuda:free"),
        ("cuda: free:2 ", "cuda:free:2"),
    ],
)
def test_a_text_is_read_and_written_back(text, canonical):
    assert str(parse_devices(text)) == canonical
    assert parse_devices(canonical) == parse_devices(text)


def test_a_kind_alone_is_no_list_and_an_index_is_one():
    assert not parse_devices("cuda").is_list
    assert parse_devices("cuda:0").is_list
    assert parse_devices("cuda:*").is_list


def test_every_documented_form_can_be_read():
    for text, _meaning in FORMS:
        assert parse_devices(text).kind == text.partition(":")[0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "devices='' is not a device"),
        ("  ", "devices='  ' is not a device"),
        ("cudabanana", "'cudabanana' is not a device type; the types are auto, cpu and cuda."),
        ("cudaa:0", "Did you mean 'cuda'?"),
        ("cpux:1", "'cpux' is not a device type"),
        ("gpu:0", "Did you mean 'cuda'?"),
        ("CUDA:0", "'CUDA' is not a device type"),
        ("mps", "'mps' is not a device type"),
        ("2", "write devices=cuda:2 for that GPU, or nproc_per_node=2 for that many ranks"),
        ("cuda:", "a device is missing beside a comma or colon"),
        ("cuda:0,", "a device is missing beside a comma or colon"),
        ("cuda:,0", "a device is missing beside a comma or colon"),
        (",cuda:0", "a device is missing beside a comma or colon"),
        ("cuda:0,:1", "a device is missing beside a comma or colon"),
        ("cuda:x", "'x' is not a device; expected numbers (0), ranges (0-2), * for all and, after cuda:, UUIDs"),
        ("cuda:-1", "'-1' is not a device"),
        ("cuda:1-2-3", "'1-2-3' is not a device"),
        ("cuda:٣", "'٣' is not a device"),
        ("cuda:0.5", "'0.5' is not a device"),
        ("cuda:2-1", "the range 2-1 runs backwards; write 1-2."),
        ("cuda:*,0", "* already stands for every device; write it alone."),
        ("cuda:0,cpu:1", "mixes cuda and cpu: all ranks of a launch use one kind"),
        ("cuda:0,banana:1", "'banana' is not a device type"),
        ("auto:0,cuda:1", "mixes auto and cuda"),
        ("cpu:GPU-12", "a UUID names a GPU; write cuda:GPU-12."),
        ("free", "Did you mean 'cuda:free'?"),
        ("free:2", "Did you mean 'cuda:free'?"),
        ("cuda:free:0", "'free:0' is not a device"),
        ("cuda:free:x", "'free:x' is not a device"),
        ("cuda:free:2000", "asks for more than 1024 ranks on one machine"),
        ("cuda:free,0", "free stands for GPUs that are found at launch; write it alone, with their number: cuda:free:2."),
        ("cuda:0,cuda:free:2", "free stands for GPUs that are found at launch"),
        (
            "cpu:free",
            "free works only with cuda, because only GPUs report which processes use them; write cuda:free or cuda:free:2.",
        ),
        ("auto:free:2", "free works only with cuda"),
        ("cpu:0-99999999", "asks for more than 1024 ranks on one machine"),
        ("cpu:0-1000,0-1000", "asks for more than 1024 ranks on one machine"),
    ],
)
def test_a_bad_text_gets_one_sentence_that_quotes_it(text, sentence):
    with pytest.raises(DeviceError) as caught:
        parse_devices(text)
    assert sentence in str(caught.value)
    assert "devices=" in str(caught.value)
    assert isinstance(caught.value, ValueError)


class TorchDevice:
    def __init__(self, text):
        self.type, _, number = text.partition(":")
        self.index = int(number) if number else None

    def __str__(self):
        return self.type if self.index is None else f"{self.type}:{self.index}"


class NumberLike:
    def __index__(self):
        return 3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("cuda:0-2", "cuda:0-2"),
        (Devices("cpu"), "cpu"),
        ([0, 1], "cuda:0,1"),
        ((1,), "cuda:1"),
        (range(3), "cuda:0-2"),
        ([NumberLike()], "cuda:3"),
        (["cuda:0", "cuda:1"], "cuda:0,1"),
        (["cpu", "cpu"], "cpu:0,0"),
        (TorchDevice("cuda:1"), "cuda:1"),
        (TorchDevice("cpu"), "cpu"),
        ([TorchDevice("cuda:1"), TorchDevice("cuda:0")], "cuda:1,0"),
        (SimpleNamespace(devices="cuda:1"), "cuda:1"),
        (SimpleNamespace(devices=Devices("cpu", (0, 1))), "cpu:0,1"),
        (SimpleNamespace(devices=[TorchDevice("cpu:0"), TorchDevice("cpu:1")]), "cpu:0,1"),
    ],
)
def test_python_values_are_devices_too(value, text):
    assert str(convert_devices(value)) == text


@pytest.mark.parametrize("value", [3.5, None, {"a": 1}, [True], [0, 1.5], [-1], object(), SimpleNamespace(devices=None), True])
def test_other_values_are_refused_by_name_of_their_type(value):
    with pytest.raises(DeviceError, match="expected a string such as 'cuda:0,1'"):
        convert_devices(value)


def test_an_object_whose_devices_lead_back_to_it_is_refused():
    loop = SimpleNamespace()
    loop.devices = SimpleNamespace(devices=loop)
    with pytest.raises(DeviceError):
        convert_devices(loop)


def test_a_picker_in_which_nothing_is_picked_is_refused_as_that():
    with pytest.raises(DeviceError, match="nothing is selected in it"):
        convert_devices(SimpleNamespace(devices=""))


def test_a_number_alone_is_refused_because_it_could_be_a_count():
    with pytest.raises(DeviceError, match="nproc_per_node=4"):
        convert_devices(4)


def test_an_empty_list_names_no_device():
    with pytest.raises(DeviceError, match=r"devices=\[\] is not a device"):
        convert_devices([])


# ---- what CUDA_VISIBLE_DEVICES leaves


@pytest.mark.parametrize(
    ("variable", "boards"),
    [
        ("0,1", [0, 1]),
        ("3,1", [3, 1]),
        (" 2 , 0", [2, 0]),
        ("", []),
        ("-1", []),
        ("1,-1,2", [1]),
        ("1,9,2", [1]),
        ("1,banana,2", [1]),
        ("1gpu2,2ampere", [1, 2]),
        ("0,0", []),
        ("GPU-2", [2]),
        ("GPU-20000000-aaaa,GPU-0", [2, 0]),
        ("GPU-2,1", [2]),
        ("GPU-,GPU-1", []),
        ("GPU-ffff", []),
        ("1,GPU-2", [1]),
        ("NoDevFiles", []),
    ],
)
def test_the_visible_list_is_read_as_cuda_reads_it(variable, boards):
    assert [gpu.board for gpu in visible_gpus(variable, FOUR.gpus)] == boards


def test_a_mig_uuid_is_visible_by_itself_and_a_board_in_mig_mode_shows_its_first_instance():
    assert [gpu.uuid for gpu in visible_gpus("MIG-02,MIG-00", MIG.gpus)] == ["MIG-02", "MIG-00"]
    assert [gpu.uuid for gpu in visible_gpus("0,1", MIG.gpus)] == ["MIG-00", MIG.gpus[3].uuid]


# ---- what each rank gets


@pytest.mark.parametrize(
    ("text", "machine", "more", "expected"),
    [
        ("auto", CPU_ONLY, {}, ["cpu:0"]),
        ("auto", FOUR, {}, ["cuda:0"]),
        ("auto", seeing(""), {}, ["cpu:0"]),
        ("auto:*", CPU_ONLY, {}, ["cpu:0", "cpu:1"]),
        ("auto:*", FOUR, {}, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("cpu", FOUR, {}, ["cpu:0"]),
        ("cpu:*", CPU_ONLY, {}, ["cpu:0", "cpu:1"]),
        ("cpu:0-3", CPU_ONLY, {}, ["cpu:0", "cpu:1", "cpu:2", "cpu:3"]),
        ("cuda:*", seeing("3,1"), {}, ["cuda:3", "cuda:1"]),
        ("cuda:0", seeing("2,3"), {}, ["cuda:2"]),
        ("cuda:2,0", FOUR, {}, ["cuda:2", "cuda:0"]),
        ("cuda:GPU-3", FOUR, {}, ["cuda:3"]),
        ("cpu", CPU_ONLY, {"nproc_per_node": 3}, ["cpu:0", "cpu:1", "cpu:2"]),
        ("auto", CPU_ONLY, {"nproc_per_node": 2}, ["cpu:0", "cpu:1"]),
        ("auto", FOUR, {"nproc_per_node": 2}, ["cuda:0", "cuda:1"]),
        ("auto", FOUR, {"nproc_per_node": "auto"}, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("auto", CPU_ONLY, {"nproc_per_node": "auto"}, ["cpu:0", "cpu:1"]),
        ("auto", CPU_ONLY, {"nproc_per_node": "cpu"}, ["cpu:0", "cpu:1"]),
        ("auto", seeing("1,2"), {"nproc_per_node": "gpu"}, ["cuda:1", "cuda:2"]),
        ("auto", FOUR, {"nproc_per_node": "cpu"}, [f"cpu:{n}" for n in range(16)]),
        ("cuda", FOUR, {"nproc_per_node": "gpu"}, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("cuda:*", FOUR, {"nproc_per_node": "gpu"}, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("cuda:0,1", FOUR, {"nproc_per_node": "auto"}, ["cuda:0", "cuda:1"]),
        ("cuda:0,1", FOUR, {"nproc_per_node": 2}, ["cuda:0", "cuda:1"]),
        ("cuda:0,1", FOUR, {"nproc_per_node": 3}, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cpu:0-1", CPU_ONLY, {"nproc_per_node": 4}, ["cpu:0", "cpu:1", "cpu:0", "cpu:1"]),
        ("cuda:*", MIG, {}, ["cuda:0:0", "cuda:0:1", "cuda:0:2", "cuda:1"]),
    ],
)
def test_a_text_means_these_devices_on_this_machine(text, machine, more, expected):
    assert names(text, machine, **more) == expected


ALICE = "alice (python, 61 GiB)"


def holding(held, machine=FOUR):
    return Inventory(gpus=machine.gpus, n_cores=machine.n_cores, held={machine.gpus[n].uuid: who for n, who in held.items()})


@pytest.mark.parametrize(
    ("text", "held", "more", "expected"),
    [
        ("cuda:free", {}, {}, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("cuda:free", {0: ALICE, 2: ALICE}, {}, ["cuda:1", "cuda:3"]),
        ("cuda:free:1", {0: ALICE}, {}, ["cuda:1"]),
        ("cuda:free:2", {0: ALICE}, {}, ["cuda:1", "cuda:2"]),
        ("cuda:free:2", {}, {"nproc_per_node": 4}, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
    ],
)
def test_free_stands_for_the_gpus_that_nobody_holds(text, held, more, expected):
    assert names(text, holding(held), **more) == expected


def test_what_was_found_free_is_named_in_the_resolved_text():
    assert resolve(parse_devices("cuda:free:2"), holding({1: ALICE})).text == "cuda:0,2"


@pytest.mark.parametrize(
    ("text", "machine", "more", "sentence"),
    [
        (
            "cuda:free:3",
            holding({0: ALICE, 2: "your run train(launcher)"}),
            {},
            "of the 4 GPUs that are visible here 2 are free. In use are cuda:0: alice (python, 61 GiB); cuda:2: your run train(launcher). ",
        ),
        (
            "cuda:free",
            holding(dict.fromkeys(range(4), ALICE)),
            {},
            "of the 4 GPUs that are visible here none are free. In use are cuda:0",
        ),
        ("cuda:free:9", holding({0: ALICE}), {}, "here 3 are free"),
        ("cuda:free:5", holding({}), {}, "of the 4 GPUs that are visible here 4 are free. Ask for at most that many."),
        ("cuda:free", CPU_ONLY, {}, "no CUDA device can be used here"),
        ("cuda:free", holding({}), {"nproc_per_node": 2}, "write devices=cuda:free:2, or leave nproc_per_node out."),
    ],
)
def test_too_few_free_gpus_are_an_error_that_says_who_holds_what(text, machine, more, sentence):
    with pytest.raises(DeviceError) as caught:
        resolve(parse_devices(text), machine, **more)
    assert sentence in str(caught.value)


def test_none_is_auto():
    assert resolve(None, FOUR).text == "cuda:0"
    assert resolve(None, CPU_ONLY, nproc_per_node=2).text == "cpu:0,1"


def test_all_ranks_see_the_chosen_gpus_in_the_chosen_order_as_uuids():
    resolved = resolve(parse_devices("cuda:3,1"), FOUR)
    visible = "GPU-30000000-aaaa,GPU-10000000-aaaa"
    assert [(rank.assigned_device, rank.visible_devices) for rank in resolved.ranks] == [("cuda:0", visible), ("cuda:1", visible)]
    assert (resolved.device_type, resolved.dist_backend, resolved.text) == ("cuda", "nccl", "cuda:3,1")


def test_the_uuids_compose_with_the_list_of_the_notebook_and_the_text_keeps_its_numbers():
    resolved = resolve(parse_devices("cuda:1"), seeing("GPU-2,GPU-0"))
    assert resolved.ranks[0].name == "cuda:0"
    assert resolved.ranks[0].visible_devices == "GPU-00000000-aaaa"
    assert resolved.text == "cuda:1"


def test_ranks_that_share_a_gpu_see_it_once_and_use_gloo():
    resolved = resolve(parse_devices("cuda:2,0,2"), FOUR)
    assert [rank.assigned_device for rank in resolved.ranks] == ["cuda:0", "cuda:1", "cuda:0"]
    assert {rank.visible_devices for rank in resolved.ranks} == {"GPU-20000000-aaaa,GPU-00000000-aaaa"}
    assert resolved.dist_backend == "gloo"


def test_one_gpu_named_by_number_and_by_uuid_is_one_gpu():
    assert resolve(parse_devices("cuda:1,GPU-1"), FOUR).dist_backend == "gloo"


def test_with_mig_each_rank_sees_its_own_instance_as_index_0_and_uses_gloo():
    resolved = resolve(parse_devices("cuda:0-1"), MIG)
    assert [(rank.assigned_device, rank.visible_devices) for rank in resolved.ranks] == [("cuda:0", "MIG-00"), ("cuda:0", "MIG-01")]
    assert resolved.dist_backend == "gloo"
    assert resolve(parse_devices("cuda:MIG-02"), MIG).ranks[0].name == "cuda:0:2"


def test_cpu_ranks_leave_the_visible_gpus_alone_and_use_gloo():
    resolved = resolve(parse_devices("cpu:0-3"), FOUR)
    assert [(rank.assigned_device, rank.visible_devices) for rank in resolved.ranks] == [("cpu", None)] * 4
    assert (resolved.device_type, resolved.dist_backend, resolved.text) == ("cpu", "gloo", "cpu:0-3")


def test_a_backend_that_was_asked_for_is_used():
    assert resolve(parse_devices("cuda:0,1"), FOUR, dist_backend="gloo").dist_backend == "gloo"
    assert resolve(parse_devices("cpu"), CPU_ONLY, dist_backend="mpi").dist_backend == "mpi"
    assert resolve(parse_devices("cuda:0,0"), FOUR, dist_backend="cpu:gloo,cuda:nccl").dist_backend == "cpu:gloo,cuda:nccl"


def test_the_resolved_text_means_the_same_devices_again():
    for text in ("auto", "cuda:*", "cuda:GPU-3,GPU-1", "cuda:0-2,0"):
        resolved = resolve(parse_devices(text), FOUR)
        assert resolve(parse_devices(resolved.text), FOUR) == resolved


@pytest.mark.parametrize(
    ("text", "machine", "more", "sentence"),
    [
        ("cuda:99", FOUR, {}, "devices='cuda:99': cuda:99 does not exist here; visible here: cuda:0-3."),
        ("cuda:2", seeing("3,1"), {}, "cuda:2 does not exist here; visible here: cuda:0,1."),
        ("cuda:GPU-ff", FOUR, {}, "GPU-ff does not exist here"),
        ("cuda:GPU-", FOUR, {}, None),
        ("cuda:MIG-0", MIG, {}, "MIG-0 begins cuda:0, cuda:1 and cuda:2; write more of the UUID."),
        ("cuda", CPU_ONLY, {}, "no CUDA device can be used here, because this machine has no NVIDIA driver. Use devices=cpu"),
        ("cuda:0", Inventory(), {}, "because this machine has none"),
        ("cuda:0", seeing(""), {}, "because CUDA_VISIBLE_DEVICES='' hides the 4 that this machine has"),
        ("auto", CPU_ONLY, {"nproc_per_node": "gpu"}, "nproc_per_node=gpu: no CUDA device can be used here"),
        (
            "cuda",
            FOUR,
            {"nproc_per_node": 6},
            "nproc_per_node=6 is more than the GPUs that are visible here (cuda:0-3): ask for at most 4",
        ),
        ("auto", FOUR, {"nproc_per_node": 6}, "let ranks share them with devices=cuda:0-3 nproc_per_node=6."),
        ("cuda:0,1", FOUR, {"nproc_per_node": 1}, "nproc_per_node=1 is less than the 2 devices of devices='cuda:0,1'"),
        ("cuda:0,1", FOUR, {"nproc_per_node": "gpu"}, "both say how many ranks there are"),
        ("cuda", FOUR, {"nproc_per_node": "cpu"}, "nproc_per_node=cpu counts another kind of device than devices='cuda' names"),
        ("cpu", FOUR, {"nproc_per_node": "gpu"}, "counts another kind of device"),
        ("cpu", FOUR, {"nproc_per_node": 2000}, "nproc_per_node=2000 asks for more than 1024 ranks"),
        ("cpu", FOUR, {"dist_backend": "nccl"}, "cannot join the ranks of cpu:0: it works on GPUs only. Use dist_backend=gloo"),
        ("cuda:1,1", FOUR, {"dist_backend": "nccl"}, "it refuses two ranks on one GPU"),
    ],
)
def test_what_a_machine_does_not_have_is_refused_in_one_sentence(text, machine, more, sentence):
    with pytest.raises(DeviceError) as caught:
        resolve(parse_devices(text), machine, **more)
    if sentence:
        assert sentence in str(caught.value)


# ---- completion


@pytest.mark.parametrize(
    ("typed", "machine", "offered"),
    [
        ("", FOUR, ["auto", "auto:*", "cpu", "cpu:*", "cuda", "cuda:*", "cuda:free"]),
        ("", CPU_ONLY, ["auto", "auto:*", "cpu", "cpu:*"]),
        ("cu", FOUR, ["cuda", "cuda:*", "cuda:free"]),
        ("cuda:", FOUR, ["cuda:*", "cuda:free", "cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("cuda:", CPU_ONLY, ["cuda:*", "cuda:free"]),
        ("cuda:1", FOUR, ["cuda:1"]),
        ("cuda:1,", FOUR, ["0", "2", "3"]),
        ("cuda:0-2,", FOUR, ["3"]),
        ("cuda:1,2", FOUR, ["2"]),
        ("cpu:0,", CPU_ONLY, ["1"]),
        ("auto:0,", CPU_ONLY, ["1"]),
        ("cuda:*,", FOUR, []),
        ("cuda:free,", FOUR, []),
        ("cuda:f", FOUR, ["cuda:free"]),
        ("banana:0,", FOUR, []),
        ("cuda:GPU-3", FOUR, ["cuda:GPU-30000000-aaaa"]),
    ],
)
def test_completion_offers_what_is_here_and_not_chosen(typed, machine, offered):
    assert complete(typed, machine) == offered


# ---- this machine


class NvmlError(Exception):
    pass


class FakeNvml:
    """The part of pynvml that is used: boards are (uuid, MIG instances or None), or None for a board that is lost."""

    NVMLError = NvmlError

    def __init__(self, boards, *, starts=True):
        self.boards, self.starts, self.is_open = boards, starts, False

    def nvmlInit(self):
        if not self.starts:
            raise NvmlError("Driver Not Loaded")
        self.is_open = True

    def nvmlShutdown(self):
        self.is_open = False

    def nvmlDeviceGetCount(self):
        return len(self.boards)

    def nvmlDeviceGetHandleByIndex(self, board):
        if self.boards[board] is None:
            raise NvmlError("GPU is lost")
        return self.boards[board]

    def nvmlDeviceGetMigMode(self, handle):
        if handle[1] is None:
            raise NvmlError("Not Supported")
        return [1 if handle[1] else 0, 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):
        return len(handle[1])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, number):
        if handle[1][number] is None:
            raise NvmlError("Not Found")
        return (handle[1][number], None)

    def nvmlDeviceGetUUID(self, handle):
        return handle[0]

    def nvmlDeviceGetName(self, handle):
        return b"NVIDIA H200" if handle[0].startswith("GPU") else "NVIDIA H200 MIG 1g.18gb"

    def nvmlDeviceGetMemoryInfo(self, handle):
        if handle[0] == "GPU-shared":
            raise NvmlError("Not Supported")
        return SimpleNamespace(total=1 << 30)


def test_boards_and_mig_instances_are_listed_with_gaps_and_lost_boards_left_out():
    nvml = FakeNvml([("GPU-a", None), None, ("GPU-b", ["MIG-x", None, "MIG-y"]), ("GPU-shared", [])])
    gpus, problem = read_gpus(nvml)
    assert [(gpu.physical_name, gpu.uuid, gpu.memory_bytes) for gpu in gpus] == [
        ("cuda:0", "GPU-a", 1 << 30),
        ("cuda:2:0", "MIG-x", 1 << 30),
        ("cuda:2:2", "MIG-y", 1 << 30),
        ("cuda:3", "GPU-shared", 0),
    ]
    assert gpus[0].name == "NVIDIA H200"
    assert problem == ""
    assert not nvml.is_open


def test_a_driver_that_does_not_answer_is_a_reason_and_no_exception():
    gpus, problem = read_gpus(FakeNvml([], starts=False))
    assert gpus == ()
    assert problem == "the NVIDIA driver does not answer (Driver Not Loaded)"


def test_a_reason_of_the_machine_is_passed_on():
    assert read_gpus("this machine has no NVIDIA driver") == ((), "this machine has no NVIDIA driver")


def test_this_machine_has_cores_and_says_why_it_has_no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    here = inventory()
    assert here.n_cores == count_cores() >= 1
    assert here.cuda_visible_devices == "0"
    assert here.gpus or here.problem
    assert inventory(look_for_gpus=False).gpus == ()


def test_a_torch_without_cuda_is_known_without_importing_it(tmp_path, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise AssertionError('imported')")
    version = tmp_path / "torch" / "version.py"
    assert torch_without_cuda() == ""
    version.write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n")
    assert torch_without_cuda() == "the installed torch was built without CUDA"
    version.write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n")
    assert torch_without_cuda() == ""


def test_every_device_error_is_one_of_ours():
    assert issubclass(DeviceError, IceNotebookError)
