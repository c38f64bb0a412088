"""Saliency, integrated gradients and occlusion: closed forms, and captum where both exist."""

import pytest
import torch
from captum import attr
from torch import nn

from lib.inspection import gradient, integrated_gradients, occlusion, saliency, score


def network(side: int = 12, channels: int = 3, smooth: bool = True) -> nn.Module:
    torch.manual_seed(0)
    act = nn.Softplus if smooth else nn.ReLU
    made = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        act(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        act(),
        nn.Flatten(),
        nn.Linear(8 * (side // 2) ** 2, 5),
    )
    return made.double().eval()


def images(n: int = 4, side: int = 12, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, channels, side, side, generator=generator, dtype=torch.float64)


LABELS = torch.tensor([0, 4, 2, 2])


@pytest.mark.parametrize("signed", [True, False])
def test_saliency_is_that_of_captum(signed):
    net, x = network(smooth=False), images()
    theirs = attr.Saliency(net).attribute(x, target=LABELS, abs=not signed)
    torch.testing.assert_close(saliency(net, x, LABELS, signed=signed), theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("baseline", [0.0, 0.3])
@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_integrated_gradients_are_those_of_captum(baseline, chunk):
    net, x = network(smooth=False), images()
    theirs = attr.IntegratedGradients(net).attribute(x, baseline, target=LABELS, n_steps=50)
    ours, _ = integrated_gradients(net, x, LABELS, baseline=baseline, chunk=chunk)
    torch.testing.assert_close(ours, theirs.to(ours), atol=1e-8, rtol=0)


@pytest.mark.parametrize(("size", "stride"), [(4, 4), (4, 2), (5, 3), (12, 12), (1, 1)])
@pytest.mark.parametrize("chunk", [1, 40])
def test_occlusion_is_that_of_captum(size, stride, chunk):
    net, x = network(), images()
    theirs = attr.Occlusion(net).attribute(
        x, (3, size, size), strides=(3, stride, stride), target=LABELS, baselines=0.5
    )
    ours = occlusion(net, x, LABELS, size=size, stride=stride, baseline=0.5, chunk=chunk)
    torch.testing.assert_close(ours, theirs[:, 0].double(), atol=1e-6, rtol=0)  # theirs: float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_network_has_its_weights_as_saliency_and_its_terms_as_the_integral(dtype):
    torch.manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).to(dtype).eval()
    x = images(2, side=4).to(dtype)
    weight = net[1].weight[1].view(3, 4, 4)
    assert torch.equal(saliency(net, x, 1, signed=True), weight.expand_as(x))
    terms, miss = integrated_gradients(net, x, 1, baseline=0.25, steps=3)
    torch.testing.assert_close(terms, weight * (x - 0.25))
    assert miss.abs().max() < 1e-5
    falls = occlusion(net, x, 1, size=2, baseline=0.25)
    blocks = (weight * (x - 0.25)).sum(1).unfold(1, 2, 2).unfold(2, 2, 2).sum((-2, -1))
    torch.testing.assert_close(falls, blocks.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_sum_of_integrated_gradients_is_the_change_of_the_score():
    net, x = network(), images()
    made, miss = integrated_gradients(net, x, LABELS, steps=80)
    change = score(net, x, LABELS) - score(net, torch.zeros_like(x), LABELS)
    torch.testing.assert_close(made.flatten(1).sum(1), change, atol=2e-3, rtol=0)
    torch.testing.assert_close(miss, made.flatten(1).sum(1) - change)


def test_gradient_is_that_of_finite_differences():
    net, x = network(), images(1)
    slope, _ = gradient(net, x, 3)
    step = torch.zeros_like(x)
    step[0, 1, 5, 6] = 1e-6
    change = (score(net, x + step, 3) - score(net, x - step, 3)) / 2e-6
    torch.testing.assert_close(slope[0, 1, 5, 6], change[0], rtol=1e-5, atol=1e-8)


def test_targets_of_all_kinds_agree():
    net, x = network(), images()
    by_class = saliency(net, x, 2)
    assert torch.equal(by_class, saliency(net, x, torch.full((4,), 2)))
    assert torch.equal(by_class, saliency(net, x, lambda output: output[:, 2]))
    for method in (occlusion, lambda *a: integrated_gradients(*a)[0]):
        torch.testing.assert_close(
            method(net, x, lambda output: output[:, 2]), method(net, x, torch.full((4,), 2))
        )


def test_rows_do_not_disturb_each_other_and_nothing_is_changed():
    net, x = network(), images()
    kept = x.clone()
    before = [w.clone() for w in net.parameters()]
    for method in (saliency, occlusion, lambda *a: integrated_gradients(*a)[0]):
        torch.testing.assert_close(method(net, x, LABELS)[1:2], method(net, x[1:2], 4))
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert all(w.grad is None for w in net.parameters())
    assert all(map(torch.equal, before, net.parameters()))


class Cut(nn.Module):
    """No derivative gets through."""

    def forward(self, x):
        return x.detach().flatten(1)


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x):
        return self.w.expand(len(x), 3)


METHODS = (saliency, integrated_gradients, occlusion)
BAD = {
    "train mode": (lambda m: m(network().train(), images(), 0), "evaluation mode"),
    "dropout left on": (
        lambda m: m(nn.Sequential(network().eval(), nn.Dropout()), images(), 0),
        "evaluation mode",
    ),
    "no network": (lambda m: m(None, images(), 0), "model"),
    "above the range": (lambda m: m(network(), images() + 0.5, 0), r"images.*\[0, 1\]"),
    "below the range": (lambda m: m(network(), -images(), 0), r"images.*\[0, 1\]"),
    "nan": (lambda m: m(network(), images() * float("nan"), 0), "images"),
    "integers": (lambda m: m(network(), torch.ones(1, 3, 12, 12, dtype=torch.int64), 0), "images"),
    "empty": (lambda m: m(network(), images()[:0], 0), "images"),
    "class too high": (lambda m: m(network(), images(), 5), "target.*0 to 4"),
    "class negative": (lambda m: m(network(), images(), -1), "target.*0 to 4"),
    "float class": (lambda m: m(network(), images(), torch.ones(4)), "target"),
    "classes of another length": (
        lambda m: m(network(), images(), torch.zeros(3).long()),
        "target",
    ),
    "function of another shape": (lambda m: m(network(), images(), lambda o: o), "target"),
    "spatial output": (lambda m: m(nn.Conv2d(3, 2, 1).double().eval(), images(), 0), "target"),
    "no row for each image": (lambda m: m(lambda x: x[:1].flatten(1), images(), 0), "model"),
}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words(method, case):
    call, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        call(method)


@pytest.mark.parametrize("method", METHODS[:2], ids=lambda m: m.__name__)
@pytest.mark.parametrize("net", [Cut(), Constant()], ids=["detached", "constant"])
def test_network_without_a_derivative_is_refused(method, net):
    with pytest.raises(ValueError, match="differentiable"):
        method(net.eval(), images(), 0)


def test_occlusion_needs_no_derivative():
    assert occlusion(Cut().eval(), images(), 0, size=6).shape == (4, 12, 12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 13}, "size"),
        ({"size": 0}, "size"),
        ({"size": 2, "stride": 3}, "stride"),
        ({"baseline": torch.zeros(7)}, "baseline"),
        ({"baseline": float("nan")}, "baseline"),
        ({"chunk": 0}, "chunk"),
    ],
)
def test_options_of_occlusion_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        occlusion(network(), images(), 0, **options)


def test_range_can_be_lifted():
    assert saliency(network(), images() * 9 - 4, 0, limits=None).isfinite().all()
