"""Influence: closed form for ridge regression, retraining for logistic regression."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lib.inspection import Influence, leave_one_out, minimise


def squared(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (output[:, 0] - y).square() / 2


def logistic(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return cross_entropy(output, y, reduction="none")


def regression(n: int = 30, d: int = 4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = x @ torch.arange(1.0, d + 1, dtype=x.dtype)
    y = y + torch.randn(n, generator=generator, dtype=x.dtype)
    model = nn.Linear(d, 1, bias=False).double().eval()
    return model, x, y


def test_ridge_regression_has_its_closed_form():
    """H = X'X/n + decay, so s.g_i / n is known; minimise finds (X'X + n decay)^{-1} X'y."""
    (model, x, y), decay = regression(), 0.1
    assert minimise(model, squared, x, y, decay=decay) < 1e-8
    n, eye = len(x), torch.eye(4, dtype=x.dtype)
    weight = torch.linalg.solve(x.T @ x + n * decay * eye, x.T @ y)
    torch.testing.assert_close(model.weight[0].detach(), weight)
    there = torch.randn(3, 4, dtype=x.dtype), torch.zeros(3, dtype=x.dtype)
    slopes = (x @ weight - y)[:, None] * x
    other = (there[0] @ weight)[:, None] * there[0]
    hessian = x.T @ x / n + decay * eye
    exact = other @ torch.linalg.solve(hessian, slopes.T) / n
    found = Influence(model, squared, x, y, decay=decay, tolerance=1e-10)
    torch.testing.assert_close(found(*there), exact)
    torch.testing.assert_close(found.mean(*there), exact.mean(0))


def test_product_is_that_of_the_hessian():
    (model, x, y), v = regression(), torch.randn(4, dtype=torch.float64)
    found = Influence(model, squared, x, y, decay=0.3, damping=0.2).hessian_product(v)
    torch.testing.assert_close(found, (x.T @ x / len(x)) @ v + 0.5 * v)


def test_logistic_regression_agrees_with_retraining():
    torch.manual_seed(1)
    x = torch.randn(80, 5, dtype=torch.float64)
    y = (x[:, 0] + 0.7 * torch.randn(80, dtype=x.dtype) > 0).long()
    model, decay = nn.Linear(5, 2).double().eval(), 0.02
    minimise(model, logistic, x, y, decay=decay)
    test = torch.randn(2, 5, dtype=x.dtype), torch.tensor([0, 1])
    guess = Influence(model, logistic, x, y, decay=decay)(*test)
    exact = leave_one_out(model, logistic, x, y, torch.arange(60), test, decay=decay)
    for a, b in zip(guess[:, :60], exact, strict=True):
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.97
    assert ((guess[:, :60] - exact).abs() < 0.25 * exact.abs() + 1e-3).all()


def test_the_model_is_not_changed():
    model, x, y = regression()
    before = model.weight.clone()
    Influence(model, squared, x, y, decay=0.1)(x[:2], y[:2])
    leave_one_out(model, squared, x, y, torch.tensor([1]), (x[:2], y[:2]), decay=0.1)
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None


def test_negative_curvature_is_said_and_damping_mends_it():
    """-cos has a maximum at pi; there the second derivative is -1."""
    model = nn.Linear(1, 1, bias=False).double().eval()
    nn.init.constant_(model.weight, torch.pi)
    one = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    loss = lambda output, y: -torch.cos(output[:, 0])  # noqa: E731
    v = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ArithmeticError, match="raise damping"):
        Influence(model, loss, *one).solve(v)
    torch.testing.assert_close(Influence(model, loss, *one, damping=3.0).solve(v), v / 2)


def test_too_few_iterations_are_said():
    model, x, y = regression()
    with pytest.raises(ArithmeticError, match="residual"):
        Influence(model, squared, x, y, iterations=1).solve(torch.ones(4, dtype=x.dtype))


BAD = {
    "train mode": (lambda m, x, y: Influence(m.train(), squared, x, y), "evaluation mode"),
    "no parameters": (lambda m, x, y: Influence(nn.Tanh(), squared, x, y), "model"),
    "rows": (lambda m, x, y: Influence(m, squared, x, y[:-1]), "y"),
    "nan": (lambda m, x, y: Influence(m, squared, x * torch.nan, y), "x"),
    "mean loss": (lambda m, x, y: Influence(m, lambda o, y: o.mean(), x, y)(x, y), "losses"),
    "damping": (lambda m, x, y: Influence(m, squared, x, y, damping=-1.0), "damping"),
    "test rows": (lambda m, x, y: Influence(m, squared, x, y).mean(x, y[:3]), "y"),
    "without": (lambda m, x, y: minimise(m, squared, x, y, without=30), "without"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words(case):
    call, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        call(*regression())
