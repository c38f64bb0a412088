import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from lib.concepts.interpretation import FactorLoss, Interpretation


def by_hand(sizes, s, shared, dtype):
    """The law of (a, b) as one normal law, from its covariance."""
    own = torch.tensor(
        [float(s * share) for size, share in zip(sizes, shared, strict=True) for _ in range(size)]
    )
    eye, cross = torch.eye(len(own)), own.diag()
    cov = torch.cat([torch.cat([eye, cross], 1), torch.cat([cross, eye], 1)])
    return MultivariateNormal(torch.zeros(2 * len(own), dtype=dtype), cov.to(dtype))


@pytest.mark.parametrize(
    ("label", "shared"),
    [(0, (0, 0, 0)), (1, (0, 1, 0)), (2, (0, 0, 1)), (-1, (1, 0, 1)), (-2, (1, 1, 0))],
)
def test_loss_is_the_density_of_a_normal_law(label, shared, dtype, device, generator):
    loss = FactorLoss([2, 1, 3], 0.7).to(device, dtype)
    a, b = torch.randn(2, 50, 6, generator=generator, dtype=dtype).to(device)
    labels = torch.full((50,), label, device=device)
    law = by_hand([2, 1, 3], 0.7, shared, dtype)
    wanted = -law.log_prob(torch.cat([a, b], 1).cpu())
    torch.testing.assert_close(loss(a, b, labels).cpu(), wanted, rtol=1e-4, atol=1e-4)
    assert loss.shared(labels)[0].tolist() == [bool(share) for share in shared]


def test_a_pair_has_no_order(dtype, generator):
    loss = FactorLoss([1, 2, 2], 0.8).to(dtype)
    a, b = torch.randn(2, 30, 5, generator=generator, dtype=dtype)
    labels = torch.arange(30) % 5 - 2
    torch.testing.assert_close(loss(a, b, labels), loss(b, a, labels))


def test_without_correlation_a_pair_is_two_flows(dtype, generator):
    model = Interpretation({"one": 1, "two": 2}, 4, correlation=0.0, hidden=(8,)).to(dtype)
    a, b = torch.randn(2, 20, 4, generator=generator, dtype=dtype)
    alone = -model.flow.log_prob(a) - model.flow.log_prob(b)
    for label in (-2, 0, 1):
        pair = model.loss(a, b, torch.full((20,), label))
        torch.testing.assert_close(pair, alone)


def test_loss_counts_the_log_determinants(dtype, generator):
    model = Interpretation({"one": 1}, 3, correlation=0.6, hidden=(8,)).to(dtype)
    with torch.no_grad():
        for weight in model.flow.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    a, b = torch.randn(2, 1, 3, generator=generator, dtype=dtype)
    J = [torch.autograd.functional.jacobian(model.encode, z)[0, :, 0] for z in (a, b)]
    nats = model.pairs(model.encode(a), model.encode(b), torch.tensor([1]))
    wanted = nats - sum(torch.linalg.slogdet(j)[1] for j in J)
    torch.testing.assert_close(model.loss(a, b, torch.tensor([1])), wanted, rtol=1e-4, atol=1e-4)


def test_decode_undoes_encode(dtype, generator):
    model = Interpretation({"one": 2}, 5, hidden=(8,)).to(dtype)
    z = torch.randn(40, 5, generator=generator, dtype=dtype)
    torch.testing.assert_close(model.decode(model.encode(z)), z, rtol=1e-4, atol=1e-4)


def test_swap_moves_the_named_blocks_and_no_others(generator):
    model = Interpretation({"one": 2, "two": 1}, 5, hidden=(8,))
    a, b = torch.randn(2, 10, 5, generator=generator)
    code, other = model.encode(a), model.encode(b)
    mixed = model.encode(model.swap(a, b, "two", "rest"))
    for name, source in {"rest": other, "one": code, "two": other}.items():
        part = model.columns(name)
        torch.testing.assert_close(mixed[:, part], source[:, part], rtol=1e-4, atol=1e-4)
    every = model.swap(a, b, *model.sizes)
    torch.testing.assert_close(every, b, rtol=1e-4, atol=1e-4)


def test_what_lies_within_a_block_does_not_change_a_swap(generator):
    """A bijection of each dimension after T commutes with the swap of blocks."""
    model = Interpretation({"one": 2}, 4, hidden=(8,))
    a, b = torch.randn(2, 10, 4, generator=generator)
    before = model.swap(a, b, "one")
    with torch.no_grad():
        for weight in model.flow.bijection[-1].parameters():
            weight.add_(torch.randn(weight.shape, generator=generator))
    torch.testing.assert_close(model.swap(a, b, "one"), before, rtol=1e-3, atol=1e-3)


def linear_pairs(n, generator, s=0.95):
    """Latents of two normal concepts, mixed by a rotation."""
    labels = torch.randint(-2, 3, (n,), generator=generator)
    blocks = torch.tensor([0, 1, 2, 2])
    a, b = torch.randn(2, n, 4, generator=generator)
    shared = FactorLoss([1, 1, 2]).shared(labels)[:, blocks]
    b = torch.where(shared, s * a + math.sqrt(1 - s**2) * b, b)
    Q = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    return a @ Q, b @ Q, labels


def test_training_finds_linear_concepts_and_their_correlation(generator):
    a, b, labels = linear_pairs(4000, generator)
    torch.manual_seed(0)
    model = Interpretation({"one": 1, "two": 2}, 4, layers=2, hidden=(8,), correlation=0.8)
    history = model.fit(a, b, labels, steps=400, lr=1e-2, progress=False)
    assert history.steps == len(history.losses) == 400
    s = model.pairs.correlation.detach()
    assert (s - 0.95).abs().max() < 0.05
    for label, name in enumerate(("one", "two"), 1):
        rows, part = labels == label, model.columns(name)
        code, other = model.encode(a[rows])[:, part], model.encode(b[rows])[:, part]
        both = torch.corrcoef(torch.cat([code, other], 1).T.detach())
        size = model.sizes[name]
        assert both[:size, size:].diagonal().min() > 0.85
    assert model.label("two") == 2
    assert model.label("-one") == -1


def test_training_is_repeatable_and_leaves_its_input(generator):
    a, b, labels = linear_pairs(200, generator)
    noise = (torch.full_like(a, 0.1), torch.full_like(b, 0.1))
    kept, models = a.clone(), []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Interpretation({"one": 1}, 4, layers=1, hidden=(4,), learned=False))
        models[-1].fit(a, b, labels.clamp(-1, 1), noise=noise, steps=10, progress=False)
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(a, kept)
    assert (models[0].pairs.correlation - 0.97).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (([3],), "sizes"),
        (([0, 0],), "sizes"),
        (([1, -1],), "sizes"),
        (([1, 1], 1.0), "correlation"),
        (([1, 1], -0.1), "correlation"),
    ],
)
def test_bad_losses_are_refused(arguments, name, unchecked):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        FactorLoss(*arguments)


def test_bad_codes_and_labels_are_refused(unchecked):
    loss, z = FactorLoss([1, 1]), torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"^labels: expected"):
        loss(z, z, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"^b: expected"):
        loss(z, torch.zeros(3, 3), torch.tensor([0, 1, 1]))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (({}, 3), "sizes"),
        (({"rest": 1}, 3), "sizes"),
        (({"one": 4}, 3), "sizes"),
        (({"one": 1.5}, 3), "sizes"),
        (({"one": 1}, 1), "features"),
    ],
)
def test_bad_networks_are_refused(arguments, name, unchecked):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        Interpretation(*arguments)


def test_bad_names_and_data_are_refused(unchecked):
    model, z = Interpretation({"one": 1}, 3, hidden=(4,)), torch.zeros(5, 3)
    for call in (
        lambda: model.label("two"),
        lambda: model.label("rest"),
        lambda: model.columns("?"),
    ):
        with pytest.raises(ValueError, match=r"^name: expected"):
            call()
    with pytest.raises(ValueError, match=r"^b, labels, noise: expected"):
        model.fit(z, z[:4], torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"^warm: expected"):
        model.fit(z, z, torch.zeros(5, dtype=torch.long), warm=1.5)
