"""Influence functions: which training row made the network say that.

For J(w) = 1/n sum_i loss_i(w) + penalty(w) with its minimum at w, leaving row i out of the sum
moves the minimum by H^{-1} grad loss_i / n to first order, H the Hessian of J; so a test loss
changes by

    (1/n) grad loss_i . s ,     s = H^{-1} grad loss_test .

s is found by conjugate gradients from products H v, and the n numbers together are one derivative
of the training losses in the direction s. No row needs a gradient of its own, no H is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from lib.checks import number, reject, whole
from lib.inspection.scores import check_model

Losses = Callable[[Tensor, Tensor], Tensor]


class Influence:
    """The change of test losses when a training row is left out, to first order.

    Args:
        model: at a minimum of J, in evaluation mode; it is not changed.
        losses: ``losses(output, y)``, the loss of each row, ``(n,)``.
        x: inputs of the training rows.
        y: their labels.
        decay: penalty(w) = decay |w|^2 / 2 over all parameters.
        damping: added to the diagonal of H. Where J has no strict minimum it must be positive.
        tolerance: of conjugate gradients, residual over right-hand side.
        iterations: at most so many products H v.

    Raises:
        ValueError: a model in training mode or without parameters, negative numbers, rows that do
            not match, losses of another shape.

    Source: Koh and Liang (2017), Understanding black-box predictions via influence functions,
        equations 1 and 2; its sign and the factor 1/n are those of leaving out.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Losses,
        x: Float[Tensor, "n *event"],
        y: Tensor,
        *,
        decay: float = 0.0,
        damping: float = 0.0,
        tolerance: float = 1e-6,
        iterations: int = 1000,
    ) -> None:
        if not isinstance(model, nn.Module) or not any(True for _ in model.parameters()):
            reject("model", "a module with parameters", type(model).__name__)
        check_model(model)
        _check_rows(x, y)
        self.model, self.losses, self.x, self.y = model, losses, x, y
        self.decay = number("decay", decay, zero=True)
        self.damping = number("damping", damping, zero=True)
        self.tolerance = number("tolerance", tolerance)
        self.iterations = whole("iterations", iterations)
        named = dict(model.named_parameters())
        self._shapes = {name: value.shape for name, value in named.items()}
        self._at = torch.cat([value.detach().flatten() for value in named.values()])

    def __call__(self, x: Float[Tensor, "m *event"], y: Tensor) -> Float[Tensor, "m n"]:
        """Change of the loss of each test row for each training row that is left out.

        Positive where the row helps: without it the test loss rises.

        Raises:
            ValueError: rows that do not match.
            ArithmeticError: as `solve`.
        """
        _check_rows(x, y)
        rows = []
        for k in range(len(x)):
            slope = grad(lambda w, k=k: self._losses(w, x[k : k + 1], y[k : k + 1]).sum())(self._at)
            rows.append(self._along(self.solve(slope)))
        return torch.stack(rows)

    def mean(self, x: Float[Tensor, "m *event"], y: Tensor) -> Float[Tensor, "n"]:
        """The mean over test rows of what a call gives, with one system of equations for all.

        Raises:
            ValueError: rows that do not match.
            ArithmeticError: as `solve`.
        """
        _check_rows(x, y)
        return self._along(self.solve(grad(lambda w: self._losses(w, x, y).mean())(self._at)))

    def hessian_product(self, v: Float[Tensor, "w"]) -> Float[Tensor, "w"]:
        """(H + damping) v, by forward over reverse differentiation."""
        objective = grad(lambda w: self._losses(w, self.x, self.y).mean())
        return jvp(objective, (self._at,), (v,))[1] + (self.decay + self.damping) * v

    def solve(self, v: Float[Tensor, "w"]) -> Float[Tensor, "w"]:
        """(H + damping)^{-1} v by conjugate gradients.

        Raises:
            ArithmeticError: H + damping is not positive definite, or `iterations` are not enough.
        """
        found, left = torch.zeros_like(v), v.clone()
        direction, size = left.clone(), left @ left
        goal = self.tolerance**2 * size
        for _ in range(self.iterations):
            if size <= goal:
                return found
            product = self.hessian_product(direction)
            curvature = direction @ product
            if not curvature > 0:
                raise ArithmeticError(
                    f"the Hessian with damping {self.damping:g} has curvature"
                    f" {float(curvature / (direction @ direction)):.2g}: raise damping"
                )
            step = size / curvature
            found, left = found + step * direction, left - step * product
            before, size = size, left @ left
            direction = left + size / before * direction
        if size <= goal:
            return found
        raise ArithmeticError(
            f"{self.iterations} iterations leave a residual of {float((size / (v @ v)).sqrt()):.1g}"
        )

    def _along(self, direction: Tensor) -> Tensor:
        """(1/n) grad loss_i . direction for all training rows."""
        _, change = jvp(lambda w: self._losses(w, self.x, self.y), (self._at,), (direction,))
        return change / len(self.x)

    def _losses(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = zip(self._shapes.items(), w.split(sizes), strict=True)
        weights = {name: part.view(shape) for (name, shape), part in parts}
        found = self.losses(functional_call(self.model, weights, (x,)), y)
        if found.shape != x.shape[:1]:
            reject("losses", f"one number for each of {len(x)} rows", tuple(found.shape))
        return found


def minimise(
    model: nn.Module,
    losses: Losses,
    x: Float[Tensor, "n *event"],
    y: Tensor,
    *,
    decay: float = 0.0,
    without: int | None = None,
    steps: int = 500,
    tolerance: float = 1e-8,
) -> float:
    """Bring a network to a minimum of J by L-BFGS on all rows, in place.

    Args:
        model: where it begins.
        losses: as in `Influence`.
        x: inputs.
        y: labels.
        decay: as in `Influence`.
        without: a row that is left out of the sum, which is still divided by n.
        steps: iterations of L-BFGS.
        tolerance: largest entry of the gradient at which it ends.

    Returns:
        The largest entry of the gradient at the end.

    Raises:
        ValueError: rows that do not match, a row that does not exist.
    """
    _check_rows(x, y)
    keep = torch.ones(len(x), dtype=torch.bool, device=x.device)
    if without is not None:
        if whole("without", without, low=0) >= len(x):
            reject("without", f"a row, 0 to {len(x) - 1}", without)
        keep[without] = False
    n, x, y, weights = len(x), x[keep], y[keep], list(model.parameters())
    optimizer = torch.optim.LBFGS(
        weights,
        max_iter=whole("steps", steps),
        history_size=20,
        tolerance_grad=number("tolerance", tolerance),
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = losses(model(x), y).sum() / n
        value = value + number("decay", decay, zero=True) / 2 * sum(
            w.square().sum() for w in weights
        )
        value.backward()
        return value

    optimizer.step(objective)
    objective()
    largest = max(float(w.grad.abs().max()) for w in weights)
    optimizer.zero_grad()
    return largest


def leave_one_out(
    model: nn.Module,
    losses: Losses,
    x: Float[Tensor, "n *event"],
    y: Tensor,
    rows: Int[Tensor, "r"],
    test: tuple[Tensor, Tensor],
    **options: float,
) -> Float[Tensor, "m r"]:
    """What `Influence` predicts, by retraining: the change of each test loss without each row.

    Args:
        model: at a minimum of J; copies of it are trained.
        losses: as in `Influence`.
        x: inputs of the training rows.
        y: their labels.
        rows: which are left out, one at a time.
        test: inputs and labels of the test rows.
        **options: of `minimise`.

    Raises:
        ValueError: as `minimise`.
    """
    _check_rows(*test)
    with torch.no_grad():
        before = losses(model(test[0]), test[1])
    changes = []
    for row in rows.tolist():
        other = deepcopy(model)
        minimise(other, losses, x, y, without=row, **options)
        with torch.no_grad():
            changes.append(losses(other(test[0]), test[1]) - before)
    return torch.stack(changes, 1)


def _check_rows(x: Tensor, y: Tensor) -> None:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.ndim < 1 or y.ndim < 1:
        reject("x, y", "two tensors with a row for each example", (type(x), type(y)))
    if len(x) != len(y) or not len(x):
        reject("y", f"a label for each of {len(x)} rows, at least one", len(y))
    if not x.isfinite().all():
        reject("x", "finite numbers", "inf or NaN")
