import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lib.concepts import fgsm, pgd, random_signs


@pytest.fixture
def linear(device):
    """Two classes, logits linear in the pixels: the best attack is known."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).to(device)


def pictures(device, n=20):
    return 0.3 + 0.4 * torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(1)).to(device)


def test_fgsm_is_optimal_for_a_linear_model(linear, device):
    x = pictures(device)
    labels = torch.zeros(len(x), dtype=torch.long, device=device)
    weight = linear[1].weight
    sign = (weight[1] - weight[0]).sign().view(1, 3, 2, 2)
    assert torch.allclose(fgsm(linear, x, labels, 0.1), x + 0.1 * sign)
    assert torch.allclose(pgd(linear, x, labels, 0.1), x + 0.1 * sign, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 2.0])
def test_attacks_stay_in_the_cube_and_in_the_range(linear, device, epsilon):
    x = pictures(device)
    labels = linear(x).argmax(1)
    before = x.clone()
    loss = cross_entropy(linear(x), labels)
    for attacked in (
        fgsm(linear, x, labels, epsilon),
        pgd(linear, x, labels, epsilon, steps=5),
        random_signs(x, epsilon, torch.Generator(device).manual_seed(0)),
    ):
        assert (attacked - x).abs().max() <= epsilon + 1e-6
        assert 0 <= attacked.min() <= attacked.max() <= 1
    assert cross_entropy(linear(fgsm(linear, x, labels, epsilon)), labels) >= loss - 1e-6
    assert torch.equal(x, before)
    assert all(p.grad is None for p in linear.parameters())


def test_random_signs_have_no_direction(device):
    x = torch.full((200, 3, 2, 2), 0.5, device=device)
    change = random_signs(x, 0.1, torch.Generator(device).manual_seed(0)) - x
    assert torch.allclose(change.abs(), torch.full_like(change, 0.1), atol=1e-6)
    assert change.mean().abs() < 0.1 * 5 / change.numel() ** 0.5


def test_works_without_gradients_switched_on(linear, device):
    x = pictures(device)
    with torch.no_grad():
        attacked = fgsm(linear, x, torch.zeros(len(x), dtype=torch.long, device=device), 0.1)
    assert not attacked.requires_grad


def test_bad_input_is_named(linear, device, unchecked):
    x, labels = pictures(device), torch.zeros(20, dtype=torch.long, device=device)
    with pytest.raises(ValueError, match="epsilon"):
        fgsm(linear, x, labels, -0.1)
    with pytest.raises(ValueError, match="steps"):
        pgd(linear, x, labels, 0.1, steps=0)
