"""Objects of torch that by themselves do not travel, or not as they are."""

from __future__ import annotations

import importlib
import warnings

import pytest
import torch

from ice_notebook.errors import PayloadError, ResultError
from ice_notebook.values import librarys_objects, refusals
from ice_notebook.values.pickles import DeviceTensors, dump, load, prepare


def test_a_data_loader_whose_workers_run_arrives_without_them(notebook):
    notebook.cell(
        "import torch\nloader = torch.utils.data.DataLoader(torch.arange(4), batch_size=2, num_workers=1, persistent_workers=True)"
    )
    loader = notebook.variables["loader"]
    assert next(iter(loader)).tolist() == [0, 1]
    try:
        assert notebook.in_rank("(loader._iterator, loader.num_workers, len(loader))") == (None, 1, 2)
        assert loader._iterator is not None, "the notebook's own goes on"
    finally:
        loader._iterator._shutdown_workers()


@pytest.mark.parametrize("options", ["", "dynamic=True, fullgraph=True"])
def test_a_compiled_function_is_compiled_again(notebook, options):
    notebook.cell(
        f"""
        import torch
        def backend(graph, inputs):
            calls.append(len(inputs))
            return graph.forward
        calls = []
        @torch.compile(backend=backend, {options})
        def double(x):
            return 2 * x
        class Model:
            @torch.compile(backend="eager")
            def step(self, x):
                return double(x) + 1
        double(torch.ones(1))
        """
    )
    values = notebook.in_rank("double(torch.ones(2)).tolist() + Model().step(torch.ones(1)).tolist() + [len(calls)]")
    assert values[:3] == [2.0, 2.0, 3.0]
    assert values[3] >= 2, "one call was here, and one more is there"


def test_an_optimizer_keeps_its_hooks_and_is_counted_by_its_scheduler(notebook):
    notebook.cell(
        """
        import torch
        weight = torch.nn.Parameter(torch.ones(1))
        class Mine(torch.optim.SGD):
            pass
        optimizer = Mine([weight], lr=1.0)
        optimizer.note = "x"
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5 ** epoch)
        seen = []
        def note_step(*_):
            seen.append("step")
        optimizer.register_step_post_hook(note_step)
        def train():
            weight.grad = torch.ones(1)
            optimizer.step()
            scheduler.step()
            return optimizer.param_groups[0]["lr"], seen, optimizer.note, weight.item(), optimizer.param_groups[0]["params"][0] is weight
        """
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert notebook.in_rank("train()") == (0.5, ["step"], "x", 0.0, True)


def test_hooks_of_a_parameter_are_there(notebook):
    notebook.cell(
        """
        import torch
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(2))
                self.plain = torch.zeros(2, requires_grad=True)
        net = Net()
        net.weight.register_hook(lambda grad: grad * 10)
        net.plain.register_hook(lambda grad: grad + 1)
        done = []
        net.weight.register_post_accumulate_grad_hook(lambda parameter: done.append(parameter is net.weight))
        def gradients():
            (net.weight + net.plain).sum().backward()
            return net.weight.grad.tolist(), net.plain.grad.tolist(), done
        """
    )
    assert notebook.in_rank("gradients()") == ([10.0, 10.0], [2.0, 2.0], [True])


def test_a_scripted_module_arrives(notebook):
    notebook.variables["double"] = torch.jit.script(torch.nn.Linear(2, 2))
    expected = notebook.variables["double"](torch.ones(2)).tolist()
    assert notebook.in_rank("double(__import__('torch').ones(2)).tolist()") == expected


# ---- what is refused -----------------------------------------------------------------------------------------------------------------


def refusal_of(value, **options):
    with pytest.raises(PayloadError) as raised:
        prepare(value, devices=DeviceTensors.TO_HOST, **options)
    return raised.value.refusal


def test_a_module_with_parametrizations_is_told_with_the_way_out():
    model = torch.nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(2, 2)))
    refusal = refusal_of(model, names={"model": model})
    assert (refusal.path, refusal.what) == ("model[0]", "a module with parametrizations, which torch does not pickle")
    assert "state_dict()" in refusal.advice
    assert "state_dict()" in refusal.result_advice


def test_a_model_that_is_wrapped_for_a_process_group_is_refused_as_a_value():
    class Wrapped(torch.nn.parallel.DistributedDataParallel):
        def __init__(self, module):
            torch.nn.Module.__init__(self)
            self.module = module

    refusal = refusal_of({"model": Wrapped(torch.nn.Linear(1, 1))}, names={"result": {"model": Wrapped(torch.nn.Linear(1, 1))}})
    sentence = str(ResultError.cannot_send(0, refusal))
    assert "a model that is wrapped for the process group of its ranks" in sentence
    assert sentence.endswith("Return `model.module`, or its `state_dict()`.")


def test_an_operator_of_the_notebook_is_refused_and_torchs_own_is_not(tmp_path):

    @torch.library.custom_op("ice_notebook_test::double", mutates_args=(), schema="(Tensor x) -> Tensor")
    def double(x):
        return 2 * x

    for operator in (double, torch.ops.ice_notebook_test.double, torch.ops.ice_notebook_test.double.default):
        assert refusal_of(operator).what == "an operator that is registered with torch in this process"
    dump([torch.ops.aten.sin, torch.ops.aten.sin.default], tmp_path / "value", devices=DeviceTensors.TO_HOST)
    assert load(tmp_path / "value") == [torch.ops.aten.sin, torch.ops.aten.sin.default]


@pytest.mark.parametrize(
    "name", sorted(name for name in [*refusals._KINDS, *librarys_objects._BY_NAME] if name.startswith("torch."))
)
def test_a_class_of_torch_is_known_by_its_full_name(name):
    parts = name.split(".")
    for n in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        break
    for part in parts[n:]:
        found = getattr(found, part)
    assert f"{found.__module__}.{found.__qualname__}" == name
