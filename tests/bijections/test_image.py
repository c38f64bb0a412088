"""Images: squeezing, half of the channels, dequantisation and its bound, the small network."""

import math
import pickle

import pytest
import torch
from torch.autograd import grad
from torch.autograd.functional import jacobian
from torch.distributions import Normal

from lib.bijections.base import Bijection, Compose, Inverse
from lib.bijections.elementwise import Affine, Softplus, Tanh
from lib.bijections.image import ConvNet, Dequantise, LogitMargin, OnHalf, Squeeze, bits_per_dim


class Mix(Bijection):
    """The channels of each pixel times a matrix of determinant `det`, for the tests."""

    def __init__(self, channels, det=2.0):
        super().__init__()
        self.event_shape = (channels, None, None)
        A = torch.eye(channels, dtype=torch.float64).roll(1, 0)
        A[0] *= det
        self.register_buffer("A", A)

    def _forward(self, x, context):
        z = torch.einsum("ij,...jhw->...ihw", self.A.to(x.dtype), x)
        pixels = x.shape[-1] * x.shape[-2]
        log_det = pixels * torch.linalg.slogdet(self.A)[1].to(x.dtype)
        return z, log_det.expand(x.shape[:-3])

    def _inverse(self, z, context):
        x = torch.einsum("ij,...jhw->...ihw", torch.linalg.inv(self.A).to(z.dtype), z)
        pixels = z.shape[-1] * z.shape[-2]
        log_det = -pixels * torch.linalg.slogdet(self.A)[1].to(z.dtype)
        return x, log_det.expand(z.shape[:-3])


class Scale(Bijection):
    """z = exp(context) x, for the tests."""

    event_shape = (None, None, None)
    context_features = 1

    def _forward(self, x, context):
        return x * context[..., None, None].exp(), context[..., 0] * math.prod(x.shape[-3:])

    def _inverse(self, z, context):
        return z / context[..., None, None].exp(), -context[..., 0] * math.prod(z.shape[-3:])


def multiscale():
    """Two scales over images of two channels: the example of the module's docstring."""
    inner = Compose([Squeeze(4), Mix(16, 3.0), Inverse(Squeeze(4))])
    return Compose([Squeeze(2), Mix(8), Tanh(), OnHalf(inner), Inverse(Squeeze(2))])


EVERY = {
    "squeeze": lambda: Squeeze(2),
    "squeeze by 4": lambda: Squeeze(2, factor=4),
    "half": lambda: OnHalf(Softplus()),
    "half of a mix": lambda: OnHalf(Mix(1)),
    "multi-scale": multiscale,
    "logit with a margin": lambda: LogitMargin(0.05),
}


@pytest.fixture(params=EVERY)
def bijection(request):
    return EVERY[request.param]()


def images(generator, *batch):
    return torch.rand(*batch, 2, 4, 4, generator=generator, dtype=torch.float64)


def eps(dtype, ulps=4):
    return ulps * torch.finfo(dtype).eps


# --- both directions


def test_inverse_undoes_forward(bijection, generator, dtype, device):
    x = images(generator, 3, 5).to(device, dtype)
    z, log_det = bijection.to(device)(x)
    back, minus = bijection.inverse(z)
    assert z.dtype == log_det.dtype == back.dtype == dtype
    assert log_det.shape == ((3, 5) if bijection.event_dim else x.shape)
    torch.testing.assert_close(back, x, rtol=0, atol=eps(dtype, 200))
    torch.testing.assert_close(minus, -log_det, rtol=eps(dtype, 200), atol=eps(dtype, 2000))


def test_log_det_is_that_of_the_jacobian(bijection, generator):
    x = images(generator)
    for f, point in [(bijection, x), (bijection.inverse, bijection(x)[0])]:
        size = point.numel()
        J = jacobian(lambda v, f=f: f(v)[0], point).reshape(size, size)
        torch.testing.assert_close(f(point)[1].sum(), torch.linalg.slogdet(J)[1])


def test_batch_is_a_loop(bijection, generator):
    x = images(generator, 3)
    z, log_det = bijection(x)
    for i in range(3):
        torch.testing.assert_close(bijection(x[i]), (z[i], log_det[i]))


def test_one_graph(bijection, generator, unchecked):
    x = images(generator, 3).float()
    z, log_det = bijection(x)
    torch.compiler.reset()
    forward = torch.compile(bijection, backend="eager", fullgraph=True)
    torch.testing.assert_close(forward(x), (z, log_det))
    inverse = torch.compile(bijection.inverse, backend="eager", fullgraph=True)
    torch.testing.assert_close(inverse(z), bijection.inverse(z))


def test_pickle(bijection, generator):
    x = images(generator, 3)
    copy = pickle.loads(pickle.dumps(bijection))
    torch.testing.assert_close(copy(x), bijection(x), rtol=0, atol=0)


# --- squeeze and halves


def test_squeeze_by_hand():
    x = torch.arange(16.0).reshape(1, 4, 4)
    expected = torch.tensor(
        [[[0.0, 2.0], [8.0, 10.0]], [[1, 3], [9, 11]], [[4, 6], [12, 14]], [[5, 7], [13, 15]]]
    )
    torch.testing.assert_close(Squeeze(1)(x)[0], expected, rtol=0, atol=0)


def test_squeeze_is_pixel_unshuffle_also_of_nothing(generator):
    x = torch.rand(2, 3, 2, 6, 9, generator=generator)
    f = Squeeze(2, factor=3)
    torch.testing.assert_close(f(x)[0], torch.nn.functional.pixel_unshuffle(x, 3), rtol=0, atol=0)
    assert f(x[:0])[0].shape == (0, 3, 18, 2, 3)
    assert f.inverse(f(x[:, :0])[0])[0].shape == (2, 0, 2, 6, 9)


def test_squeeze_tells_its_neighbours(generator):
    f = multiscale()
    assert f.event_shape == f.latent_shape == (2, None, None)
    assert Compose([Squeeze(3), Mix(12)]).latent_shape == (12, None, None)
    with pytest.raises(ValueError, match=r"^parts: expected"):
        Compose([Squeeze(3), Mix(8)])


def test_first_half_is_left_alone(generator):
    x = images(generator)
    z, log_det = OnHalf(Affine(0.0, 0.5))(x)
    torch.testing.assert_close(z[:1], x[:1], rtol=0, atol=0)
    torch.testing.assert_close(z[1:], 2 * x[1:])
    torch.testing.assert_close(log_det, torch.tensor(16 * math.log(2), dtype=torch.float64))


def test_half_passes_context_on(generator):
    x, context = images(generator, 3), torch.tensor([[0.0], [1.0], [-1.0]], dtype=torch.float64)
    f = OnHalf(Scale())
    z, log_det = f(x, context)
    torch.testing.assert_close(log_det, 16 * context[:, 0])
    torch.testing.assert_close(f.inverse(z, context)[0], x)


def test_half_initialises_from_its_half(generator):
    seen = []

    class Watch(Softplus):
        def initialise(self, x, context=None):
            seen.append(x)

    x = images(generator, 3)
    OnHalf(Watch()).initialise(x)
    torch.testing.assert_close(seen[0], x[:, 1:])


# --- dequantisation


@pytest.mark.parametrize("levels", [2, 3, 10, 49, 256, 1000])
def test_quantise_undoes_dequantise(levels, generator):
    k = torch.randint(levels, (200_000,), generator=generator)
    x = Dequantise(levels).dequantise(k, generator)
    assert ((x >= 0) & (x <= 1)).all()
    assert torch.equal(Dequantise(levels).quantise(x), k)


def test_noise_is_uniform_within_its_cell(generator):
    k = torch.full((200_000,), 3, dtype=torch.uint8)
    u = Dequantise(8).dequantise(k, generator) * 8 - 3
    # Kolmogorov: the largest distance from the diagonal is below 1.63 / sqrt n in 99 of 100 cases.
    distance = (u.sort()[0] - (torch.arange(200_000) + 0.5) / 200_000).abs().max()
    assert distance < 1.63 / math.sqrt(200_000)


def test_rounding_never_carries_a_point_out_of_its_cell(monkeypatch):
    largest = lambda shape, **_: torch.full(shape, 1 - 2.0**-24)  # noqa: E731
    monkeypatch.setattr(torch, "rand", largest)
    k = torch.arange(256)
    assert torch.equal(Dequantise().quantise(Dequantise().dequantise(k)), k)


def test_quantise_clamps():
    x = torch.tensor([-0.5, 0.0, 0.999, 1.0, 7.0])
    assert Dequantise(10).quantise(x).tolist() == [0, 0, 9, 9, 9]


def test_dequantised_likelihood_is_a_lower_bound(generator):
    # p(x) = 2x on [0, 1] gives P(k) = (2k + 1) / levels^2, which the bound approaches from below.
    gaps = []
    for levels in (2, 4, 16):
        k = torch.arange(levels).repeat_interleave(50_000)
        x = Dequantise(levels).dequantise(k, generator)
        exact = ((2 * k + 1) / levels**2).log().mean()
        gaps.append(float(exact - ((2 * x).log() - math.log(levels)).mean()))
    assert gaps[0] > gaps[1] > gaps[2] > 0


def test_bits_per_dim():
    # The uniform density costs 8 bits; one on two cells, hence 128 times as high, costs 1.
    torch.testing.assert_close(bits_per_dim(torch.zeros(2), 12), torch.full((2,), 8.0))
    known = torch.tensor(12 * math.log(128.0))
    torch.testing.assert_close(bits_per_dim(known, 12), torch.tensor(1.0))


def test_same_seed_same_noise():
    k = torch.zeros(5, dtype=torch.int64)
    draws = [Dequantise().dequantise(k, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# --- logit with a margin


def test_logit_margin_on_its_ends_and_outside(dtype, device):
    f, c = LogitMargin(0.05), math.log(0.95 / 0.05)
    x = torch.tensor([0.0, 1.0, 0.5], dtype=dtype, device=device).requires_grad_()
    z, log_det = f(x)
    torch.testing.assert_close(z.detach(), z.new_tensor([-c, c, 0.0]), rtol=0, atol=eps(dtype, 16))
    (slope,) = grad(z.sum(), x)
    torch.testing.assert_close(slope.log(), log_det.detach())
    info = torch.finfo(dtype)
    outside = [-info.tiny, 1 + info.eps, -1.0, 2.0, 1e30, -math.inf, math.inf]
    x = torch.tensor(outside, dtype=dtype, device=device).requires_grad_()
    z, log_det = f(x)
    assert torch.isfinite(z).all()
    assert (log_det == -math.inf).all()
    for value in (z, log_det):
        assert (grad(value.sum(), x, retain_graph=True)[0] == 0).all()


def test_logit_margin_is_symmetric(dtype):
    gap = torch.logspace(-6, -0.31, 100, dtype=dtype)
    low, high = LogitMargin(1e-6)(gap), LogitMargin(1e-6)(1 - gap)
    # Spacing of floats next to 1, over the distance of the margin from 1.
    torch.testing.assert_close(low[0], -high[0], rtol=0, atol=eps(dtype, 4) / 1e-6)


def test_logit_margin_mass():
    # The mass on [0, 1] is that of the base on [-c, c]: the midpoint rule, and the normal cdf.
    n = 20_000
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    z, log_det = LogitMargin(0.05)(x)
    normal = Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    mass = (normal.log_prob(z) + log_det).exp().mean()
    c = torch.tensor(math.log(0.95 / 0.05), dtype=torch.float64)
    torch.testing.assert_close(mass, normal.cdf(c) - normal.cdf(-c), rtol=0, atol=1e-6)


def test_samples_outside_have_no_density(dtype):
    z = torch.tensor([0.0, 5.0, -5.0, 200.0], dtype=dtype).requires_grad_()
    x, log_det = LogitMargin(0.05).inverse(z)
    log_prob = Normal(0.0, 1.0).log_prob(z) - log_det
    assert torch.isfinite(x).all()
    assert torch.isfinite(log_prob[0])
    assert (log_prob[1:] == -math.inf).all()
    assert torch.isfinite(grad(x.sum() + log_det[0], z)[0]).all()


# --- network


def test_network_starts_at_zero_and_keeps_the_size(generator, dtype, device):
    net = ConvNet(3, 8, hidden=5).to(device, dtype)
    x = torch.randn(2, 3, 6, 7, generator=generator).to(device, dtype)
    out = net(x)
    assert out.shape == (2, 8, 6, 7)
    assert out.dtype == dtype
    assert (out == 0).all()


def awake(net, generator):
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return net


def test_network_commutes_with_shifts_away_from_the_border(generator):
    net = awake(ConvNet(2, 3, hidden=4), generator)
    x = torch.zeros(1, 2, 16, 16)
    x[..., 6:9, 6:9] = torch.randn(1, 2, 3, 3, generator=generator)
    moved, out = net(x.roll((2, -1), (-2, -1))), net(x).roll((2, -1), (-2, -1))
    torch.testing.assert_close(moved[..., 3:-3, 3:-3], out[..., 3:-3, 3:-3])


def test_context_acts_per_image_and_at_each_pixel_alike(generator):
    net = awake(ConvNet(2, 3, hidden=4, context_features=5), generator)
    x = torch.randn(1, 2, 6, 6, generator=generator).expand(2, -1, -1, -1)
    context = torch.randn(2, 5, generator=generator)
    out = net(x, context)
    assert not torch.allclose(out[0], out[1])
    torch.testing.assert_close(net(x, context.flip(0)), out.flip(0))
    flat = net(torch.zeros(2, 2, 6, 6), context)[..., 1:-1, 1:-1]
    torch.testing.assert_close(flat, flat[..., :1, :1].expand_as(flat))


# --- refusals


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: Squeeze(1, factor=1), "factor"),
        (lambda: Squeeze(0), "channels"),
        (lambda: Squeeze(1)(torch.zeros(1, 5, 4)), "x"),
        (lambda: Squeeze(1)(torch.zeros(1, 4, 5)), "x"),
        (lambda: Squeeze(1)(torch.zeros(4, 4)), "x"),
        (lambda: Squeeze(1).inverse(torch.zeros(6, 4, 4)), "z"),
        (lambda: Squeeze(2)(torch.zeros(1, 4, 4)), "x"),
        (lambda: OnHalf(Softplus())(torch.zeros(3, 4, 4)), "x"),
        (lambda: OnHalf(Softplus()).inverse(torch.zeros(3, 4, 4)), "z"),
        (lambda: OnHalf(Squeeze(2)), "bijection"),
        (lambda: OnHalf(torch.nn.ReLU()), "bijection"),
        (lambda: OnHalf(Affine([0.0, 1.0])), "bijection"),
        (lambda: LogitMargin(0.0), "alpha"),
        (lambda: LogitMargin(0.5), "alpha"),
        (lambda: LogitMargin(math.nan), "alpha"),
        (lambda: Dequantise(1), "levels"),
        (lambda: Dequantise().dequantise(torch.zeros(2)), "images"),
        (lambda: Dequantise(4).dequantise(torch.tensor([0, 4])), "images"),
        (lambda: Dequantise(4).dequantise(torch.tensor([-1, 3])), "images"),
        (lambda: bits_per_dim(torch.zeros(1), 0), "features"),
        (lambda: bits_per_dim(torch.zeros(1), 3, 1), "levels"),
        (lambda: ConvNet(0, 2), "in_channels"),
        (lambda: ConvNet(2, 2, hidden=0), "hidden"),
        (lambda: ConvNet(2, 2)(torch.zeros(1, 3, 4, 4)), "inputs"),
        (lambda: ConvNet(2, 2, context_features=3)(torch.zeros(1, 2, 4, 4)), "context"),
        (lambda: ConvNet(2, 2)(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3)), "context"),
    ],
)
def test_refuses_in_words(call, named, unchecked):
    with pytest.raises(ValueError, match=f"^{named}: expected"):
        call()
