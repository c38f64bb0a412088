"""Training in one function: one call for a laptop, a Colab GPU, or several nodes under torchrun.

    nll = lambda flow, batch, generator: -flow.log_prob(batch).mean()
    history = fit(flow, nll, data, steps=1000)

Lightning Fabric picks the device, the precision and the process group. The module is *not* wrapped:
the loss may call any of its methods; where there are several ranks, gradients are averaged here.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from lib.checks import reject, whole

CONVERT = {"64-true": torch.float64, "bf16-true": torch.bfloat16}
PRECISIONS = ("32-true", *CONVERT, "bf16-mixed", "16-mixed")


class NonFiniteLoss(ArithmeticError):
    """A loss or gradient (the parameters are as before that step) or a parameter is not finite."""


@dataclass
class History:
    """What happened in a `fit`.

    Attributes:
        losses: the sum that was minimised, before each step (``losses[0]`` belongs to the start).
        terms: the same for each named term of the loss.
        steps: optimiser steps that were made.
        seconds: wall time.
        device: where the training ran.
        reason: ``"steps"``, or what `stop` said.
    """

    losses: list[float] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    reason: str = "steps"


def fit(
    module: nn.Module,
    loss: Callable[[nn.Module, Any, torch.Generator], Tensor | dict[str, Tensor]],
    data: Any = None,
    *,
    steps: int,
    batch_size: int | None = None,
    lr: float = 1e-3,
    optimizer: str | Callable[[list[nn.Parameter]], torch.optim.Optimizer] = "adam",
    schedule: str | Callable[[torch.optim.Optimizer], Any] | None = None,
    seed: int = 0,
    devices: str | torch.device = "auto",
    precision: str = "32-true",
    accumulate: int = 1,
    clip: float | None = None,
    ema: float | None = None,
    stop: Callable[[int, History, nn.Module], str | None] | None = None,
    progress: bool | None = None,
) -> History:
    """Minimise a loss over the parameters of a module, in place.

    Per step, with batches b_1..b_K and K = `accumulate`: g = 1/K sum_k grad loss(module, b_k), then
    one step of the optimiser. The module ends on the device from which it came, each part in the
    mode (train or eval) in which it came. Inside `fit` the global random state is seeded too (for
    dropout, or for distributions); afterwards it is what it was. The same seed gives the same
    weights on a CPU.

    Args:
        module: what is trained; parameters without ``requires_grad`` stay as they are.
        loss: ``loss(module, batch, generator)`` returns a scalar, or named scalars that are added
            up. The generator lives on the training device.
        data: a tensor or a tuple of tensors with a common first dimension (moved to the device
            once, shuffled anew in each epoch, no row twice in an epoch); a Dataset or a DataLoader;
            a callable ``data(generator) -> batch``; or None, for a loss that needs none.
        steps: optimiser steps.
        batch_size: rows per batch on each rank; None takes all rows at once. The rows of an epoch
            that fill no whole batch are left out; the next shuffle brings them back.
        lr: learning rate of ``"adam"``.
        optimizer: ``"adam"``, or a callable from the parameters to an optimiser.
        schedule: ``"cosine"`` (to zero at the last step), or a callable from the optimiser to a
            scheduler; it is stepped after each step.
        seed: of batches and noise; the noise differs by rank.
        devices: ``"auto"`` takes every rank when torchrun or ``fabric run`` started the process,
            else one device, a GPU where there is one; or the name of one device. Nothing is ever
            spawned.
        precision: ``"32-true"`` computes in the dtype of the module (a float64 module stays
            float64); ``"64-true"`` and ``"bf16-true"`` convert the module and floating-point data;
            ``"bf16-mixed"`` and ``"16-mixed"`` keep the weights and autocast the loss.
        accumulate: batches per step.
        clip: upper bound of the gradient's Euclidean norm.
        ema: decay d of an exponential average e <- d e + (1 - d) weights, begun at the weights
            after the first step; the module ends with the average.
        stop: called after each step with (steps made, history, module); it returns None to go on,
            or its reason to end, a string that is not empty.
        progress: True or False; None shows a bar only on an interactive terminal.

    Returns:
        The history of the losses.

    Raises:
        ValueError: an argument of the wrong kind or range; before the first step the module is left
            as it was.
        NonFiniteLoss: a term, a gradient or, in the end, a parameter is NaN or infinite; the
            message names step and culprit.
    """
    started = time.perf_counter()
    steps, accumulate = whole("steps", steps, low=0), whole("accumulate", accumulate)
    seed = whole("seed", seed, low=0)
    if seed >= 2**63:
        reject("seed", "an integer below 2^63", seed)
    _check(module, loss, lr, precision, clip, ema)
    if stop is not None and not callable(stop):
        reject("stop", "a callable (steps, history, module) or None", repr(stop))
    fabric = _fabric(devices, precision)
    history = History(device=fabric.device)
    modes = [(part, part.training) for part in module.modules()]
    if fabric.world_size > 1:
        module.load_state_dict(fabric.broadcast(module.state_dict()))
    came = [(w, w.data) for w in module.parameters()]
    home = came[0][1].device
    buffers = [(part, dict(part._buffers)) for part, _ in modes]
    weights: dict[str, nn.Parameter] = {}
    average: list[Tensor] = []
    update = get_ema_multi_avg_fn(ema) if ema is not None else None
    bar = tqdm(total=steps, disable=not (_show(progress) and fabric.is_global_zero), leave=False)
    try:
        module.to(fabric.device, CONVERT.get(precision)).train()
        weights = {name: w for name, w in module.named_parameters() if w.requires_grad}
        inner = _optimizer(optimizer, list(weights.values()), lr)
        scheduler = _scheduler(schedule, inner, steps)
        outer = fabric.setup_optimizers(inner)
        with torch.random.fork_rng([fabric.device] if fabric.device.type == "cuda" else []):
            torch.manual_seed(seed + fabric.global_rank)
            generator = torch.Generator(fabric.device).manual_seed(seed + fabric.global_rank)
            batches = _batches(data, batch_size, generator, seed, fabric, CONVERT.get(precision))
            for step in range(steps):
                inner.zero_grad()
                terms = _accumulate(fabric, module, loss, batches, generator, accumulate)
                values = _guard(step, terms, weights, scaled=precision == "16-mixed")
                for name, value in values.items():
                    history.terms.setdefault(name, []).append(value)
                history.losses.append(math.fsum(values.values()))
                if clip is not None:
                    fabric.clip_gradients(module, outer, max_norm=clip, error_if_nonfinite=False)
                outer.step()
                if scheduler is not None:
                    scheduler.step()
                if update is not None and average:
                    update(average, [w.detach() for w in weights.values()], step)
                elif update is not None:
                    average = [w.detach().clone() for w in weights.values()]
                history.steps = step + 1
                came.clear()
                buffers.clear()
                bar.update()
                reason = None if stop is None else stop(history.steps, history, module)
                if reason is not None:
                    if not isinstance(reason, str) or not reason:
                        reject("stop", "None or a string that is not empty", repr(reason))
                    history.reason = reason
                    break
        for w, mean in zip(weights.values(), average, strict=False):
            w.data.copy_(mean)
        if history.steps and (broken := _broken(weights)):
            raise NonFiniteLoss(
                f"step {history.steps - 1}: parameter {broken!r} is NaN or infinite after it"
            )
    except Exception:
        for w, data in came:  # refused before the first step: undo the conversion
            w.data = data
        for part, values in buffers:
            part._buffers.update(values)
        raise
    finally:
        bar.close()
        for w in weights.values():
            w.grad = None
        for part, mode in modes:
            part.training = mode
        if fabric.device != home:
            module.to(home)
        history.seconds = time.perf_counter() - started
    return history


def _accumulate(
    fabric: Fabric,
    module: nn.Module,
    loss: Callable,
    batches: Iterator,
    generator: torch.Generator,
    count: int,
) -> dict[str, Tensor]:
    """Leave the mean gradient over batches and ranks in ``.grad``, return the mean terms."""
    terms: dict[str, Tensor] = {}
    for _ in range(count):
        with fabric.autocast():
            parts = loss(module, next(batches), generator)
        parts = parts if isinstance(parts, dict) else {"loss": parts}
        for name, part in parts.items():
            if not isinstance(part, Tensor) or part.numel() != 1:
                got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                reject(f"loss (term {name!r})", "a scalar tensor", got)
            if part.is_complex():
                reject(f"loss (term {name!r})", "a real number", str(part.dtype))
        total = sum(part.reshape(()) for part in parts.values())
        if not (isinstance(total, Tensor) and total.requires_grad):
            reject("loss", "a value that depends on a trainable parameter", "one that does not")
        fabric.backward(total / count)
        for name, part in parts.items():
            part = part.detach().reshape(()) / count
            terms[name] = terms[name] + part if name in terms else part
    if fabric.world_size > 1:
        terms = {name: fabric.all_reduce(part, reduce_op="mean") for name, part in terms.items()}
        for w in module.parameters():
            if w.grad is not None:
                w.grad = fabric.all_reduce(w.grad, reduce_op="mean")
    return terms


def _guard(
    step: int, terms: dict[str, Tensor], weights: dict[str, Tensor], *, scaled: bool
) -> dict[str, float]:
    """The terms as floats, in one transfer from the device; or an error that names the culprit."""
    # Scaled float16 gradients may overflow: the gradient scaler then skips the step by itself.
    grads = {} if scaled else {name: w.grad for name, w in weights.items() if w.grad is not None}
    values = torch.stack([*terms.values(), *(grad.norm() for grad in grads.values())]).tolist()
    if all(map(math.isfinite, values)):
        return dict(zip(terms, values, strict=False))
    names = [f"term {name!r}" for name in terms] + [f"the gradient of {name!r}" for name in grads]
    name, value = next((n, v) for n, v in zip(names, values, strict=True) if not math.isfinite(v))
    broken = _broken(weights)
    state = f"parameter {broken!r} was already non-finite" if broken else "parameters are finite"
    raise NonFiniteLoss(f"step {step}: {name} is {value}; {state}")


def _broken(weights: dict[str, Tensor]) -> str:
    """The name of the first parameter that is NaN or infinite, or nothing."""
    fine = torch.stack([w.isfinite().all() for w in weights.values()]).tolist()
    return next((name for name, good in zip(weights, fine, strict=True) if not good), "")


def _batches(
    data: Any,
    size: int | None,
    generator: torch.Generator,
    seed: int,
    fabric: Fabric,
    dtype: torch.dtype | None,
) -> Iterator[Any]:
    """Endless batches, on the device and in the dtype of the training."""
    if size is not None:
        size = whole("batch_size", size)
    order = torch.Generator().manual_seed(seed)  # the same on all ranks: each takes its own stripe

    def rows(tensors: tuple[Tensor, ...], unpack: bool) -> Iterator[Any]:
        tensors = fabric.to_device(tensors)
        share = len(tensors[0]) // fabric.world_size
        while True:
            shuffled = torch.randperm(len(tensors[0]), generator=order)
            stripe = shuffled[fabric.global_rank :: fabric.world_size][:share].to(fabric.device)
            for start in range(0, share - (size or share) + 1, size or share):
                picked = tuple(t[stripe[start : start + (size or share)]] for t in tensors)
                yield picked[0] if unpack else picked

    def epochs(loader: DataLoader) -> Iterator[Any]:
        loader = fabric.setup_dataloaders(loader)
        while True:
            count = 0
            for count, batch in enumerate(loader, 1):  # noqa: B007
                yield batch
            if not count:
                reject("data", "at least one batch in an epoch (see batch_size)", "none")

    if data is None:
        batches: Iterator[Any] = repeat(None)
    elif isinstance(data, Tensor | tuple):
        tensors = (data,) if isinstance(data, Tensor) else data
        if not tensors or not all(isinstance(t, Tensor) and t.ndim for t in tensors):
            reject(
                "data", "tensors with at least one dimension", [type(t).__name__ for t in tensors]
            )
        if len({len(t) for t in tensors}) > 1:
            reject("data", "a common first dimension", [tuple(t.shape) for t in tensors])
        if not fabric.world_size * (size or 1) <= len(tensors[0]):
            reject("batch_size", f"at most the {len(tensors[0])} rows of data", size)
        batches = rows(tensors, isinstance(data, Tensor))
        if size is None and fabric.world_size == 1:  # all rows: nothing to shuffle
            batches = repeat(fabric.to_device(data))
    elif isinstance(data, DataLoader):
        if size is not None:
            reject("batch_size", "None, as the DataLoader has its own", size)
        batches = epochs(data)
    elif isinstance(data, Dataset):
        if not hasattr(data, "__len__") or not len(data):
            reject("data", "a Dataset with rows, whose number is known", type(data).__name__)
        size = size or max(1, len(data) // fabric.world_size)
        if fabric.world_size * size > len(data):
            reject("batch_size", f"at most the {len(data)} rows of data", size)
        batches = epochs(DataLoader(data, size, shuffle=True, drop_last=True, generator=order))
    elif callable(data):
        batches = (fabric.to_device(data(generator)) for _ in repeat(None))
    else:
        reject("data", "tensors, a Dataset, a DataLoader, a callable or None", type(data).__name__)
    if dtype is None:
        return batches
    cast = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
    return (apply_to_collection(batch, Tensor, cast) for batch in batches)


def _fabric(devices: str | torch.device, precision: str) -> Fabric:
    """One device; or, when a launcher has already started the ranks, all of them."""
    plugin = precision if precision.endswith("mixed") else "32-true"  # `fit` converts by itself
    if devices == "auto" and "WORLD_SIZE" in os.environ:
        if "LT_CLI_USED" in os.environ:  # `fabric run` hands its options to Fabric directly
            fabric = Fabric(precision=plugin)
        else:
            local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            fabric = Fabric(
                devices=local, num_nodes=int(os.environ["WORLD_SIZE"]) // local, precision=plugin
            )
        fabric.launch()
        return fabric
    if devices == "auto":
        return Fabric(devices=1, precision=plugin)
    try:
        device = torch.device(devices)
        chosen = [device.index or 0] if device.type == "cuda" else 1
        return Fabric(accelerator=device.type, devices=chosen, precision=plugin)
    except Exception as error:
        reject("devices", "'auto' or a device of this machine", f"{devices!r} ({error})")


def _check(module: Any, loss: Any, lr: Any, precision: Any, clip: Any, ema: Any) -> None:
    if not isinstance(module, nn.Module):
        reject("module", "a torch.nn.Module", type(module).__name__)
    if not any(w.requires_grad for w in module.parameters()):
        reject("module", "at least one parameter that requires a gradient", "none")
    if not callable(loss):
        reject("loss", "a callable (module, batch, generator)", type(loss).__name__)
    if precision not in PRECISIONS:
        reject("precision", f"one of {', '.join(PRECISIONS)}", repr(precision))
    for name, value, high in (("lr", lr, math.inf), ("clip", clip, math.inf), ("ema", ema, 1.0)):
        if value is None and name != "lr":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < high:
            reject(name, f"a number between 0 and {high:g}", repr(value))


def _optimizer(choice: Any, weights: list[Tensor], lr: float) -> torch.optim.Optimizer:
    made = torch.optim.Adam(weights, lr=lr) if choice == "adam" else None
    if made is None and callable(choice):
        made = choice(weights)
    if not isinstance(made, torch.optim.Optimizer) or isinstance(made, torch.optim.LBFGS):
        reject("optimizer", "'adam' or a callable to an optimiser without closure", repr(choice))
    return made


def _scheduler(choice: Any, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    if choice == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(steps, 1))
    if choice is not None and not callable(choice):
        reject("schedule", "'cosine', a callable or None", repr(choice))
    made = choice(optimizer) if choice is not None else None
    unfit = (torch.optim.Optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau)
    if choice is not None and (not hasattr(made, "step") or isinstance(made, unfit)):
        reject("schedule", "a callable to a scheduler that steps without arguments", repr(made))
    return made


def _show(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else bool(progress)
