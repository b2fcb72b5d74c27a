"""Tensors to a file and back: aliasing, layout, identity, what is written of a storage, and devices."""

from __future__ import annotations

import importlib
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from ice_notebook.errors import PayloadError, ResultError
from ice_notebook.values import pickles, tensors
from ice_notebook.values.pickles import DeviceTensors, dump, load, prepare

TO_HOST, TO_ASSIGNED, REFUSE = DeviceTensors.TO_HOST, DeviceTensors.TO_ASSIGNED, DeviceTensors.REFUSE
MIB = 1 << 20

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "value"


def round_trip(value, path, devices=TO_HOST, **options):
    dump(value, path, devices=devices)
    return load(path, **options)


def storage_of(tensor):
    return tensor.untyped_storage().data_ptr()


class Scaled(torch.Tensor):
    """A subclass with an attribute."""


def test_a_value_of_a_run_that_version_0_1_has_kept_is_read(path):
    """It names our modules by where they were then, and has a tensor and an exception of ours."""
    shutil.copyfile(Path(__file__).parent / "kept" / "value_of_0.1", path)
    value = load(path)
    assert torch.equal(value["weight"], torch.arange(6.0).reshape(2, 3))
    assert isinstance(value["error"], ResultError)


@pytest.mark.parametrize("module", sorted(pickles._MOVED.values()))
def test_what_such_values_name_is_where_they_are_led(module):
    importlib.import_module(module)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64, torch.uint16, torch.float8_e4m3fn],
    ids=str,
)
def test_values_dtype_and_shape_come_back(path, dtype):
    value = torch.arange(24).reshape(2, 3, 4).to(dtype)
    back = round_trip(value, path)
    assert back.dtype is dtype
    assert back.stride() == value.stride()
    assert torch.equal(
        back.view(torch.uint8) if dtype.itemsize == 1 else back, value.view(torch.uint8) if dtype.itemsize == 1 else value
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(12.0).reshape(3, 4).t(),
        lambda: torch.arange(20.0)[3:15:2],
        lambda: torch.arange(4.0).expand(3, 4),
        lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        lambda: torch.tensor(3.5),
        lambda: torch.empty(0),
        lambda: torch.empty(3, 0, 2),
        lambda: torch.arange(10.0)[10:],
        lambda: torch.arange(6.0).to(torch.complex64).conj(),
        lambda: torch._neg_view(torch.arange(6.0)),
    ],
    ids=[
        "transposed",
        "stepped",
        "expanded",
        "channels last",
        "scalar",
        "empty",
        "empty dimension",
        "empty view",
        "conjugate",
        "negated",
    ],
)
def test_views_keep_their_strides(path, make):
    value = make()
    back = round_trip(value, path)
    assert torch.equal(back, value)
    assert back.stride() == value.stride()
    assert (back.is_conj(), back.is_neg()) == (value.is_conj(), value.is_neg())


def test_a_view_and_its_base_still_share_their_memory(path):
    base = torch.zeros(10_000)
    back = round_trip({"base": base, "view": base[2:4], "again": base, "flat": base.view(100, 100)}, path)
    back["base"][2] = 7
    assert back["view"][0] == 7
    assert back["flat"][0, 2] == 7
    assert back["again"] is back["base"]


def test_the_same_memory_under_two_dtypes_is_still_shared(path):
    base = torch.zeros(1000, dtype=torch.int32)
    back = round_trip([base, base.view(torch.uint8)], path)
    back[0][0] = 1
    assert back[1][0] == 1


def test_a_small_view_does_not_drag_its_storage_along(path):
    base = torch.arange(4 * MIB, dtype=torch.float32)
    written = dump((base[:10], base[5:20]), path, devices=TO_HOST)
    assert written.size_bytes < 4096
    first, second = load(path)
    assert torch.equal(first, base[:10])
    assert torch.equal(second, base[5:20])
    first[5] = -1
    assert second[0] == -1


def test_views_far_apart_are_written_as_parts(path):
    base = torch.arange(4 * MIB, dtype=torch.float32)
    written = dump((base[100:110], base[-10:], base[105:120]), path, devices=TO_HOST)
    assert written.size_bytes < 4096
    first, last, third = load(path)
    assert torch.equal(last, base[-10:])
    assert storage_of(first) == storage_of(third) != storage_of(last)
    first[5] = -1
    assert third[0] == -1


def test_a_part_begins_where_every_dtype_can_read_it(path):
    base = torch.zeros(MIB, dtype=torch.uint8)
    base[:200] = torch.arange(200)
    odd, wide = base[65:67], base[64:80].view(torch.int64)
    written = dump((odd, wide), path, devices=TO_HOST)
    assert written.size_bytes < 4096
    back_odd, back_wide = load(path)
    assert torch.equal(back_odd, odd)
    assert torch.equal(back_wide, wide)
    assert back_wide.data_ptr() % 64 == 0


def test_views_of_half_a_storage_keep_all_of_it(path):
    base = torch.arange(10_000, dtype=torch.float32)
    back = round_trip(base[:6000], path)
    assert back.untyped_storage().nbytes() == 40_000


def test_an_empty_view_of_a_large_storage_writes_nothing_of_it(path):
    base = torch.zeros(MIB)
    assert dump(base[5:5], path, devices=TO_HOST).size_bytes < 4096
    assert load(path).shape == (0,)


def test_tensors_are_not_copied_before_they_are_written():
    value = torch.zeros(MIB)
    prepared = prepare(value, devices=TO_HOST)
    value[0] = 5
    (piece,) = prepared._segments[0].pieces(64 * MIB)
    assert piece.nbytes == 4 * MIB
    assert piece[:4].cast("f")[0] == 5


def test_a_loaded_tensor_is_writable_and_the_file_unchanged(path):
    dump(torch.zeros(5000), path, devices=TO_HOST)
    first, second = load(path), load(path)
    first += 1
    assert second.sum() == 0
    assert load(path).sum() == 0


def test_a_loaded_tensor_can_be_shared_with_workers(path):
    back = round_trip(torch.arange(5000.0), path)
    assert back.share_memory_().is_shared()
    assert back[4999] == 4999


def test_requires_grad_parameters_and_attributes_come_back(path):
    leaf = torch.ones(3, requires_grad=True)
    tagged = torch.ones(3)
    tagged.tag = "a"
    parameter = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    back = round_trip([leaf, leaf * 2, tagged, parameter], path)
    assert [t.requires_grad for t in back] == [True, True, False, False]
    assert back[2].tag == "a"
    assert type(back[3]) is torch.nn.Parameter


def test_tied_weights_and_modules_keep_their_identity(path):
    model = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    model.register_buffer("steps", torch.tensor(3))
    back, again = round_trip((model, model), path)
    assert back is again
    assert back[1].weight is back[0].weight
    assert back.steps == 3
    assert torch.equal(back(torch.tensor([1])), model(torch.tensor([1])))


def test_an_optimizer_still_steps_its_model(path):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    back, back_optimizer = round_trip((model, optimizer), path)
    before = back.weight.detach().clone()
    back(torch.ones(2)).sum().backward()
    back_optimizer.step()
    assert not torch.equal(before, back.weight)


def test_a_subclass_with_attributes_comes_back(path):
    value = torch.arange(MIB, dtype=torch.float32)[:4].as_subclass(Scaled)
    value.factor = 2
    back = round_trip(value, path)
    assert type(back) is Scaled
    assert back.factor == 2
    assert path.stat().st_size < 4096


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)]),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)], layout=torch.jagged),
    ],
    ids=["coo", "csr", "quantized", "nested", "jagged"],
)
def test_other_layouts_come_back(path, make):
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch calls these layouts new or old, and warns when it rebuilds a quantized tensor itself
        value = make()
        back = round_trip(value, path)
    assert back.layout == value.layout
    for a, b in zip(value.unbind() if value.is_nested else [value], back.unbind() if value.is_nested else [back], strict=True):
        dense = (a.dequantize(), b.dequantize()) if a.is_quantized else (a.to_dense(), b.to_dense())
        assert torch.equal(*dense)


def test_a_meta_tensor_stays_one(path):
    back = round_trip(torch.empty(3, device="meta"), path)
    assert back.is_meta
    assert back.shape == (3,)


def test_a_bare_storage_comes_back_whole_and_shared(path):
    value = torch.arange(1000.0)
    untyped, tensor, part = round_trip((value.untyped_storage(), value, value[:2]), path)
    assert untyped.nbytes() == 4000
    assert untyped.data_ptr() == storage_of(tensor) == storage_of(part)


def test_a_typed_storage_comes_back(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates them; checkpoints hold them still
        back = round_trip(torch.arange(3.0).storage(), path)
        assert back.tolist() == [0, 1, 2]


def test_other_torch_objects_come_back(path):
    assert round_trip([torch.Size([1, 2]), torch.float16, torch.device("cpu")], path) == [
        torch.Size([1, 2]),
        torch.float16,
        torch.device("cpu"),
    ]


def test_a_default_device_does_not_redirect_what_is_loaded(path):
    dump(torch.ones(5000), path, devices=TO_HOST)
    with torch.device("meta"):
        assert not load(path).is_meta


def test_inference_tensors_come_back(path):
    with torch.inference_mode():
        value = torch.arange(2000.0) * 2
        back = round_trip(value, path)
    assert torch.equal(back, value)


def test_a_thousand_small_tensors_need_one_file_descriptor(path):
    value = [torch.tensor([float(i)]) for i in range(1500)]
    assert torch.equal(torch.cat(round_trip(value, path)), torch.arange(1500.0))


# ---- devices -----------------------------------------------------------------------------------------------------------------------
# Without a GPU, a stand-in storage says that it is on one; its bytes are on the CPU.


class DeviceStorage:
    """Answers as a storage on a GPU would, except that its memory can be had here."""

    class device:
        type = "cuda"

    def __init__(self, storage):
        self.storage = storage
        self._cdata = storage._cdata

    def nbytes(self):
        return self.storage.nbytes()


def test_a_storage_on_a_device_is_marked_only_when_it_is_to_arrive_on_one():
    storage = DeviceStorage(torch.zeros(4).untyped_storage())
    for devices, is_device in [(TO_HOST, False), (TO_ASSIGNED, True)]:
        dumper = tensors.Dumper(devices)
        dumper._whole(storage)
        assert [segment.row.is_device for segment in dumper.segments()] == [is_device]


def test_a_marked_storage_is_moved_to_the_loaders_device():
    # meta is the only other device that every machine has.
    memory = memoryview(bytearray(64))
    row = tensors.SegmentRow(0, 0, 16, is_device=True)
    assert tensors.Loader(memory, [row], [0], "meta").storage(0).at(0)[0].device.type == "meta"
    assert tensors.Loader(memory, [row], [0], None).storage(0).at(0)[0].device.type == "cpu"


def test_cpu_tensors_stay_on_the_cpu_whatever_the_loaders_device_is(path):
    dump(torch.zeros(4), path, devices=TO_ASSIGNED)
    assert load(path, device="meta").device.type == "cpu"


def test_cpu_ranks_take_cpu_tensors(path):
    assert round_trip(torch.ones(3), path, devices=REFUSE).sum() == 3


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a GPU, and has no memory at all."""

    @staticmethod
    def __new__(cls):
        return torch.Tensor._make_wrapper_subclass(cls, (3,), device="cuda:1")

    __torch_dispatch__ = classmethod(lambda cls, *arguments: cls())


def test_a_tensor_on_a_gpu_is_refused_by_name_for_cpu_ranks(path):
    model = torch.nn.Linear(2, 2)
    model.cache = Elsewhere()
    with pytest.raises(PayloadError) as raised:
        dump(model, path, devices=REFUSE, names={"model": model})
    assert str(raised.value) == (
        "`model.cache` cannot be sent to the ranks: it is a tensor on cuda:1, and the ranks are CPU ranks."
        " Send its copy on the CPU, `.cpu()`, or launch with `devices=cuda`."
    )


def test_a_parameter_that_cannot_travel_is_named_as_it_is_written(path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    parameter = torch.nn.Parameter(Elsewhere(), requires_grad=False)
    model[0].register_parameter("scale", parameter)
    with pytest.raises(PayloadError, match=r"`model\[0\].scale` cannot be sent"):
        dump(model, path, devices=REFUSE, names={"model": model})


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@gpu
def test_gpu_tensors_come_back_on_the_cpu_and_still_share(path):
    base = torch.arange(4 * MIB, dtype=torch.float32, device="cuda")
    written = dump((base[:10], base[5:20]), path, devices=TO_HOST)
    assert written.size_bytes < 4096
    first, second = load(path, device="cuda:0")
    assert first.device.type == "cpu"
    first[5] = -1
    assert second[0] == -1


@gpu
def test_gpu_tensors_arrive_on_the_assigned_device(path):
    model, host = torch.nn.Linear(2000, 100).cuda(), torch.ones(3)
    back, back_host = round_trip((model, host), path, devices=TO_ASSIGNED, device="cuda:0")
    assert back.weight.device == torch.device("cuda:0")
    assert torch.equal(back.weight, model.weight)
    assert back_host.device.type == "cpu"
    assert load(path)[0].weight.device.type == "cpu"


@gpu
def test_a_large_gpu_tensor_is_copied_piece_by_piece():
    value = torch.arange(MIB, dtype=torch.float32, device="cuda")
    pieces = list(prepare(value, devices=TO_HOST)._segments[0].pieces(MIB))
    assert [piece.nbytes for piece in pieces] == [MIB] * 4
    assert torch.equal(torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.float32), value.cpu())


@gpu
def test_gpu_tensors_are_refused_by_name_for_cpu_ranks(path):
    model = torch.nn.Linear(2, 2).cuda()
    with pytest.raises(
        PayloadError, match=r"`model.weight` cannot be sent to the ranks: it is a tensor on cuda:0, and the ranks are CPU"
    ):
        dump(model, path, devices=REFUSE, names={"model": model})
