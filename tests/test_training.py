import math
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lib.training import NonFiniteLoss, fit


def rows(n=64, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, generator=generator, dtype=dtype)
    noise = torch.randn(n, 1, generator=generator, dtype=dtype)
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=dtype) + 0.3 + noise


def linear(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 1, dtype=dtype)


def square(module, batch, generator):
    return (module(batch[0]) - batch[1]).square().mean()


def sgd(lr):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def flat(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def test_least_squares_reaches_the_normal_equations(device, dtype):
    x, y = rows(dtype=dtype)
    module = linear(dtype)
    history = fit(module, square, (x, y), steps=600, lr=0.1, schedule="cosine", devices=device)
    design = torch.cat([x, torch.ones_like(y)], 1)
    exact = torch.linalg.lstsq(design, y).solution.ravel()
    assert flat(module).dtype == dtype
    torch.testing.assert_close(flat(module).cpu(), exact, rtol=0, atol=1e-5)
    assert history.device.type == device.type
    assert module.weight.device.type == "cpu"  # back where it came from
    assert (history.steps, history.reason, len(history.losses)) == (600, "steps", 600)
    residual = (design @ exact - y.ravel()).square().mean()
    assert history.losses[-1] == pytest.approx(float(residual), rel=1e-5)


def test_two_accumulated_batches_are_one_double_batch():
    x, y = rows()
    halves = [(x[:32], y[:32]), (x[32:], y[32:])] * 5
    turns = iter(halves)
    once, twice = linear(), linear()
    a = fit(once, square, (x, y), steps=5, optimizer=sgd(0.1))
    b = fit(twice, square, lambda g: next(turns), steps=5, optimizer=sgd(0.1), accumulate=2)
    torch.testing.assert_close(flat(once), flat(twice), rtol=1e-12, atol=1e-12)
    assert a.losses == pytest.approx(b.losses)


@pytest.mark.parametrize("clip", [1e-3, 0.1])
def test_clip_bounds_the_gradient_and_keeps_its_direction(clip):
    free, clipped, start = linear(), linear(), flat(linear())
    fit(free, square, rows(), steps=1, optimizer=sgd(1.0))
    fit(clipped, square, rows(), steps=1, optimizer=sgd(1.0), clip=clip)
    step, bound = flat(free) - start, flat(clipped) - start
    assert float(bound.norm()) == pytest.approx(clip, rel=1e-4)
    torch.testing.assert_close(bound / bound.norm(), step / step.norm())


def test_named_terms_are_added_up_and_recorded():
    def loss(module, batch, generator):
        return {"fit": square(module, batch, generator), "decay": module.weight.square().sum()}

    history = fit(linear(), loss, rows(), steps=3)
    assert list(history.terms) == ["fit", "decay"]
    sums = [a + b for a, b in zip(history.terms["fit"], history.terms["decay"], strict=True)]
    assert history.losses == pytest.approx(sums)


def test_the_seed_decides_and_globals_stay():
    def loss(module, batch, generator):
        noise = torch.randn(batch[0].shape, generator=generator, dtype=torch.float64)
        return square(module, (batch[0] + 0.1 * noise + 0.1 * torch.randn(3), batch[1]), generator)

    def run(seed):
        module = linear()
        fit(module, loss, rows(), steps=10, batch_size=8, seed=seed)
        return flat(module)

    state, default, threads = torch.get_rng_state(), torch.get_default_dtype(), dict(os.environ)
    first = run(0)
    torch.rand(1)  # a different global state
    moved = torch.get_rng_state()
    assert torch.equal(first, run(0))
    assert not torch.equal(first, run(1))
    assert torch.equal(moved, torch.get_rng_state())
    assert not torch.equal(state, moved)
    assert torch.get_default_dtype() == default
    assert dict(os.environ) == threads


def test_an_epoch_shows_each_row_once():
    seen = []

    def loss(module, batch, generator):
        seen.append(batch.ravel())
        return module.weight.sum()

    fit(nn.Linear(1, 1), loss, torch.arange(12.0)[:, None], steps=6, batch_size=4)
    epochs = torch.stack(seen).view(2, 12)
    assert torch.equal(epochs.sort(1).values, torch.arange(12.0).expand(2, 12))
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("kind", ["tuple", "dataset", "loader", "callable"])
def test_every_kind_of_data_reaches_the_same_optimum(kind):
    x, y = rows()
    data = {
        "tuple": (x, y),
        "dataset": TensorDataset(x, y),
        "loader": DataLoader(TensorDataset(x, y), batch_size=64),
        "callable": lambda generator: (x, y),
    }[kind]
    module = linear()
    fit(module, square, data, steps=300, optimizer=sgd(0.3))
    exact = torch.linalg.lstsq(torch.cat([x, torch.ones_like(y)], 1), y).solution.ravel()
    torch.testing.assert_close(flat(module), exact, rtol=0, atol=1e-6)


def test_no_data_is_data_too():
    module = nn.Linear(2, 1)
    fit(module, lambda m, batch, g: m.weight.square().sum(), steps=100, optimizer=sgd(0.3))
    assert float(module.weight.detach().norm()) < 1e-6


def test_ema_is_the_exponential_average_of_the_weights():
    path, decay = [], 0.7
    module = linear()

    def watch(step, history, m):
        path.append(flat(m))

    fit(module, square, rows(), steps=6, ema=decay, stop=watch, lr=0.1)
    average = path[0]
    for weights in path[1:]:
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(flat(module), average)


def test_stop_ends_with_its_reason():
    history = fit(
        linear(), square, rows(), steps=50, stop=lambda n, h, m: "enough" if n == 7 else None
    )
    assert (history.steps, history.reason, len(history.losses)) == (7, "enough", 7)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_term_is_named_before_it_acts(bad):
    calls = []

    def loss(module, batch, generator):
        calls.append(flat(module))
        factor = bad if len(calls) == 4 else 1.0
        return {
            "fine": square(module, batch, generator),
            "broken": factor * module.weight.sum() ** 2,
        }

    module = linear()
    with pytest.raises(
        NonFiniteLoss, match=r"^step 3: term 'broken' is \w+; parameters are finite"
    ):
        fit(module, loss, rows(), steps=10)
    assert torch.equal(flat(module), calls[-1])
    assert issubclass(NonFiniteLoss, ArithmeticError)


def test_a_bad_gradient_names_its_parameter():
    module = linear()
    with torch.no_grad():
        module.bias.zero_()
    before = flat(module)
    with pytest.raises(NonFiniteLoss, match="step 0: the gradient of 'bias' is inf"):
        fit(module, lambda m, b, g: m.weight.sum() + m.bias.sqrt().sum(), steps=3)
    assert torch.equal(flat(module), before)


def test_a_parameter_that_was_already_bad_is_named():
    module = linear()
    with torch.no_grad():
        module.bias.fill_(math.nan)
    with pytest.raises(NonFiniteLoss, match="parameter 'bias' was already non-finite"):
        fit(module, square, rows(), steps=3)


def test_modes_frozen_weights_and_inputs_stay():
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 1)).double()
    module[1].eval()
    module[0].requires_grad_(False)
    frozen, (x, y) = flat(module[0]), rows()
    copies = x.clone(), y.clone()
    fit(module, square, (x, y), steps=3)
    assert [part.training for part in module] == [True, False, True]
    assert torch.equal(flat(module[0]), frozen)
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
    assert all(w.grad is None for w in module.parameters())


@pytest.mark.parametrize(
    ("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)]
)
def test_true_precisions_convert_module_and_data(precision, dtype):
    kinds = []

    def loss(module, batch, generator):
        kinds.append((module.weight.dtype, batch[0].dtype, batch[1].dtype))
        return module(batch[0]).float().mean()

    x = torch.randn(4, 3)
    fit(linear(torch.float32), loss, (x, torch.arange(4)), steps=1, precision=precision)
    assert kinds == [(dtype, dtype, torch.int64)]


def test_mixed_precision_keeps_the_weights():
    module, kinds = linear(torch.float32), []

    def loss(module, batch, generator):
        kinds.append(module(batch).dtype)
        return module(batch).float().mean()

    fit(module, loss, torch.randn(4, 3), steps=1, precision="bf16-mixed")
    assert kinds == [torch.bfloat16]
    assert module.weight.dtype == torch.float32


def test_silent_unless_asked(capfd):
    fit(linear(), square, rows(), steps=2)
    out = capfd.readouterr()
    assert out.out == out.err == ""
    fit(linear(), square, rows(), steps=2, progress=True)
    assert "2" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": -1}, "^steps: expected an integer"),
        ({"steps": 1.5}, "^steps: expected an integer"),
        ({"batch_size": 0}, "^batch_size: expected an integer"),
        ({"batch_size": 65}, "^batch_size: expected at most the 64 rows"),
        ({"accumulate": 0}, "^accumulate: expected"),
        ({"lr": 0.0}, "^lr: expected"),
        ({"lr": math.nan}, "^lr: expected"),
        ({"clip": -1.0}, "^clip: expected"),
        ({"ema": 1.0}, "^ema: expected"),
        ({"seed": -1}, "^seed: expected"),
        ({"precision": "32"}, "^precision: expected one of"),
        ({"devices": "abacus"}, "^devices: expected"),
        ({"optimizer": "sgd"}, "^optimizer: expected"),
        ({"optimizer": torch.optim.LBFGS}, "^optimizer: expected"),
        ({"schedule": "linear"}, "^schedule: expected"),
        ({"data": [1]}, "^data: expected"),
        ({"data": (torch.zeros(2), torch.zeros(3))}, "^data: expected a common first"),
        ({"module": 3}, "^module: expected"),
        ({"module": nn.ReLU()}, "^module: expected at least one parameter"),
        ({"loss": 3}, "^loss: expected"),
        ({"loss": lambda m, b, g: m(b[0])}, "^loss .*expected a scalar"),
        ({"loss": lambda m, b, g: 3.0}, "^loss .*expected a scalar"),
        ({"loss": lambda m, b, g: b[0].sum()}, "^loss: expected a value that depends"),
        ({"loss": lambda m, b, g: 1j * m(b[0]).sum()}, "^loss .*expected a real"),
        ({"seed": 2**70}, "^seed: expected an integer below"),
        ({"schedule": lambda o: 3}, "^schedule: expected"),
        ({"schedule": lambda o: o}, "^schedule: expected"),
        ({"stop": 3}, "^stop: expected a callable"),
        ({"stop": lambda *_: False}, "^stop: expected None or a string"),
        ({"stop": lambda *_: ""}, "^stop: expected None or a string"),
        ({"data": TensorDataset(*rows(4)), "batch_size": 5}, "^batch_size: expected at most the 4"),
        ({"data": TensorDataset(torch.zeros(0, 3))}, "^data: expected a Dataset with rows"),
        (
            {"data": DataLoader(TensorDataset(*rows(4)), 5, drop_last=True)},
            "^data: expected at least one batch",
        ),
    ],
)
def test_bad_arguments(change, message, unchecked):
    arguments = {"module": linear(), "loss": square, "data": rows(), "steps": 1, **change}
    with pytest.raises(ValueError, match=message):
        fit(**arguments)


def second_fails():
    """A loss whose first call leaves gradients, and whose second is refused."""
    calls = iter([square, lambda m, b, g: 3.0])
    return lambda m, b, g: next(calls)(m, b, g)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd"},
        {"schedule": lambda o: 3},
        {"data": 3},
        {"batch_size": 65},
        {"loss": lambda m, b, g: 3.0},
        {"data": DataLoader(TensorDataset(*rows(4)), 4), "accumulate": 2, "loss": second_fails()},
    ],
)
def test_a_refused_call_leaves_the_module_as_it_was(change, unchecked):
    module = nn.Sequential(linear(), nn.LayerNorm(1, dtype=torch.float64)).eval()
    module.register_buffer("shift", torch.full((1,), 0.1, dtype=torch.float64))
    before = {name: t.clone() for name, t in module.state_dict().items()}
    arguments = {"loss": square, "data": rows(), "steps": 1, "precision": "bf16-true", **change}
    with pytest.raises(ValueError, match="expected"):
        fit(module, **arguments)
    assert not any(part.training for part in module.modules())
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    assert all(w.grad is None for w in module.parameters())


def test_the_last_step_leaves_finite_parameters_or_says_so():
    module, data = linear(torch.float32), rows(dtype=torch.float32)
    with pytest.raises(NonFiniteLoss, match=r"^step 0: parameter 'weight' is NaN or infinite"):
        fit(module, square, (data[0], 100 * data[1]), steps=1, optimizer=sgd(1e38))


RANKS = """
import torch
from torch import nn
from lib.training import fit
torch.manual_seed(0)
x = torch.arange(8.0, dtype=torch.float64)[:, None]
module = nn.Linear(1, 1, dtype=torch.float64)
sgd = lambda w: torch.optim.SGD(w, lr=0.01)
fit(module, lambda m, b, g: m(b).square().mean(), x, steps=4, optimizer=sgd)
print(repr((module.weight.item(), module.bias.item())))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun")
def test_two_ranks_take_the_step_of_one(tmp_path):
    """Each of two ranks sees half of the rows; their mean gradient is that of all rows."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    environment = {
        **os.environ,
        "PYTHONPATH": os.getcwd(),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    many = subprocess.run(
        [sys.executable, *launch, script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall(r"\((\S+), (\S+)\)", many.stdout)  # two ranks may share a line
    assert len(found) == 2
    torch.manual_seed(0)
    module, x = (
        nn.Linear(1, 1, dtype=torch.float64),
        torch.arange(8.0, dtype=torch.float64)[:, None],
    )
    with torch.random.fork_rng():
        fit(module, lambda m, b, g: m(b).square().mean(), x, steps=4, optimizer=sgd(0.01))
    for values in found:
        assert [float(value) for value in values] == pytest.approx(
            [module.weight.item(), module.bias.item()], rel=1e-12
        )
