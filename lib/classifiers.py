"""Small image classifiers to be explained: a VGG, a ResNet, and the way to the large ones."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

import lib.data.digits
import lib.data.scenes
import lib.training
from lib.checks import reject, whole
from lib.data.scenes import KINDS, Scenes, scenes
from lib.training import History, fit

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation
CACHE = "LIB_WEIGHTS"  # environment variable with the folder of `trained`
ROOT = Path(__file__).resolve().parents[1]


class Normalise(nn.Module):
    """Images in [0, 1] to numbers around zero: ``(x - mean) / std``, channel by channel.

    Args:
        mean: of each channel.
        std: its standard deviation.

    Raises:
        ValueError: lengths that differ, a deviation that is not positive.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            reject("std", f"{len(mean)} positive numbers", std)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(
        self, x: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n channels height width"]:
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """A chain of layers with names, from images in [0, 1] to one logit for each class.

    Attributes:
        layers: by name, in their order; the first is ``"normalise"``, the last ``"logits"``.
        classes: number of classes.
    """

    layers: nn.ModuleDict
    classes: int

    def forward(self, x: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n classes"]:
        for layer in self.layers.values():
            x = layer(x)
        return x

    def representations(self, x: Float[Tensor, "n 3 height width"]) -> dict[str, Tensor]:
        """What each layer hands on, by name."""
        found = {}
        for name, layer in self.layers.items():
            x = found[name] = layer(x)
        return found

    def fit(
        self,
        data: tuple[Tensor, Tensor] | Scenes | Callable[[torch.Generator], Scenes],
        *,
        steps: int,
        **options: Any,
    ) -> History:
        """Minimise the cross-entropy; the network is in eval mode afterwards.

        Adam, batches of 32, and a learning rate that rises to 0.005 over the first seventh of the
        steps and then falls to zero, by default. Batch norm collects its statistics on the way.

        Args:
            data: images with labels, scenes, or a callable from a generator to a fresh batch of
                scenes (or of images with labels).
            steps: of the optimiser.
            **options: of `lib.training.fit`.

        Returns:
            The history of the losses.

        Raises:
            ValueError: data of another kind, options that `lib.training.fit` refuses.
        """
        steps, lr = whole("steps", steps, low=0), options.get("lr", 5e-3)
        cycle = partial(OneCycleLR, max_lr=lr, total_steps=steps + 1, pct_start=0.15)
        common = {"lr": lr, "schedule": partial(cycle, cycle_momentum=False)}
        source = (lambda generator: _pair(data(generator))) if callable(data) else _pair(data)
        if isinstance(source, tuple):
            common["batch_size"] = min(32, len(source[0]))
        self.to(memory_format=torch.channels_last)  # which is faster on a CPU
        try:
            history = fit(self, _loss, source, steps=steps, **(common | options))
        finally:
            self.to(memory_format=torch.contiguous_format)
        self.eval()
        return history

    @torch.no_grad()
    def accuracy(self, images: Float[Tensor, "n 3 height width"], labels: Tensor) -> float:
        """Share of images whose largest logit is that of the label."""
        pairs = zip(images.split(256), labels.split(256), strict=True)
        return float(torch.cat([self(x).argmax(1) == y for x, y in pairs]).float().mean())


class SmallVGG(Classifier):
    """3x3 convolutions with batch norm, ReLU and max-pooling, then fully connected layers.

    ``conv1`` to ``conv4`` each end in ReLU, ``pool1`` to ``pool3`` halve the sides after the first
    three; ``pool4`` averages to 4x4, so that images of any side of eight or more fit; ``fc5`` ends
    in ReLU.

    Args:
        classes: number of classes.
        width: channels of the first convolution; the others have two, four and four times as many.
        hidden: length of ``fc5``.

    Raises:
        ValueError: sizes below one, fewer than two classes.

    Source: Simonyan and Zisserman (2015), with fewer and thinner layers.
    """

    def __init__(self, classes: int, *, width: int = 16, hidden: int = 64) -> None:
        super().__init__()
        self.classes = whole("classes", classes, low=2)
        width, hidden = whole("width", width), whole("hidden", hidden)
        self.layers = nn.ModuleDict(
            {
                "normalise": Normalise((0.5,) * 3, (0.25,) * 3),
                "conv1": _conv(3, width),
                "pool1": nn.MaxPool2d(2),
                "conv2": _conv(width, 2 * width),
                "pool2": nn.MaxPool2d(2),
                "conv3": _conv(2 * width, 4 * width),
                "pool3": nn.MaxPool2d(2),
                "conv4": _conv(4 * width, 4 * width),
                "pool4": nn.AdaptiveAvgPool2d(4),
                "flatten": nn.Flatten(),
                "fc5": nn.Sequential(nn.Linear(64 * width, hidden), nn.ReLU()),
                "logits": nn.Linear(hidden, classes),
            }
        )


class Residual(nn.Module):
    """``relu(skip(x) + f(x))``, f being two 3x3 convolutions with batch norm.

    The skip is the identity, or a 1x1 convolution with batch norm where the shape changes.

    Args:
        inputs: channels.
        outputs: channels.
        stride: of the first convolution, and of the skip.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu = nn.ReLU()

    def forward(
        self, x: Float[Tensor, "n inputs height width"]
    ) -> Float[Tensor, "n outputs down across"]:
        return self.relu(self.skip(x) + self.body(x))


class SmallResNet(Classifier):
    """Residual blocks with batch norm, then the average over the picture.

    ``stem`` is a 3x3 convolution with batch norm and ReLU; ``block1`` to ``block3`` halve the
    sides; ``pool`` averages over all positions, so that images of any side fit.

    Args:
        classes: number of classes.
        width: channels of the stem; the blocks have two, four and eight times as many.

    Raises:
        ValueError: a width below one, fewer than two classes.

    Source: He, Zhang, Ren and Sun (2016), with fewer and thinner layers.
    """

    def __init__(self, classes: int, *, width: int = 8) -> None:
        super().__init__()
        self.classes = whole("classes", classes, low=2)
        width = whole("width", width)
        self.layers = nn.ModuleDict(
            {
                "normalise": Normalise((0.5,) * 3, (0.25,) * 3),
                "stem": _conv(3, width),
                "block1": Residual(width, 2 * width, 2),
                "block2": Residual(2 * width, 4 * width, 2),
                "block3": Residual(4 * width, 8 * width, 2),
                "pool": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                "logits": nn.Linear(8 * width, classes),
            }
        )


NETWORKS: dict[str, Callable[..., Classifier]] = {"vgg": SmallVGG, "resnet": SmallResNet}
_STEPS = {"vgg": 1200, "resnet": 1100}


def trained(
    name: str,
    *,
    steps: int | None = None,
    batch: int = 32,
    seed: int = 0,
    network: dict[str, Any] | None = None,
    folder: str | Path | None = None,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> Classifier:
    """A network that was trained on fresh scenes; its weights are kept from one call to the next.

    The weights lie in a file whose name is a hash of everything that they depend on: network, data,
    steps, seed, the source of the modules that make them, and the version of torch. A file that
    cannot be read is made anew.

    Args:
        name: ``"vgg"`` or ``"resnet"``.
        steps: of the optimiser; None takes some 20 seconds on one core at side 32, and is enough
            for shapes. With a cue only the ResNet learns as fast, in 1,600 steps.
        batch: fresh scenes per step.
        seed: of the weights and of the scenes.
        network: options of `SmallVGG` or `SmallResNet`.
        folder: where the files lie; None is the environment variable ``LIB_WEIGHTS``, else
            ``_build/weights`` in the repository, or where that cannot be written the cache folder
            of the user.
        device: where the network is trained, and where it is returned.
        **settings: of `scenes`, but for number, labels, generator and device.

    Returns:
        The network, in eval mode.

    Raises:
        ValueError: an unknown name, options that network, scenes or fit refuse.
    """
    if name not in NETWORKS:
        reject("name", f"one of {', '.join(NETWORKS)}", repr(name))
    steps = _STEPS[name] if steps is None else whole("steps", steps)
    batch, seed = whole("batch", batch), whole("seed", seed, low=0)
    if taken := sorted({"n", "labels", "generator", "device"} & set(settings)):
        reject("settings", "options of scenes that do not vary from batch to batch", taken)
    kind = settings.get("kind", "shapes")
    if kind not in KINDS:
        reject("kind", f"one of {', '.join(KINDS)}", repr(kind))
    device = torch.device(device)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = NETWORKS[name](len(KINDS[kind]), **(network or {}))
    choices = [name, network or {}, settings, steps, batch, seed, device.type]
    path = _store(folder) / f"{name}-{_key(choices)}.pt"
    if not _load(net, path):
        net.to(device)
        net.fit(_fresh(batch, settings), steps=steps, seed=seed, devices=device)
        _save(net, path)
    return net.to(device).eval()


def vgg16(**options: Any) -> nn.Sequential:
    """The VGG-16 of torchvision with its ImageNet weights; images in [0, 1] go in.

    Args:
        **options: of torchvision's function; ``weights=None`` downloads nothing.

    Returns:
        `Normalise` as ``normalise``, then the network as ``network``; in eval mode.

    Raises:
        ImportError: torchvision is not installed, or not for this torch.
    """
    return _large("vgg16", options)


def resnet50(**options: Any) -> nn.Sequential:
    """The ResNet-50 of torchvision; the rest is as for `vgg16`."""
    return _large("resnet50", options)


def _large(name: str, options: dict[str, Any]) -> nn.Sequential:
    try:
        from torchvision import models
    except (ImportError, RuntimeError, OSError) as error:  # a build for another torch: any of these
        raise ImportError(
            f"{name} comes from torchvision, which cannot be imported ({error}). Install the build "
            f"for torch {torch.__version__} (https://pytorch.org/get-started); Colab has it."
        ) from error
    net = getattr(models, name)(**({"weights": "IMAGENET1K_V1"} | options))
    return nn.Sequential(OrderedDict(normalise=Normalise(*IMAGENET), network=net)).eval()


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _loss(net: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    images, labels = batch
    return cross_entropy(net(images.contiguous(memory_format=torch.channels_last)), labels)


def _pair(data: Any) -> tuple[Tensor, Tensor]:
    pair = (data.images, data.labels) if isinstance(data, Scenes) else data
    if not (isinstance(pair, tuple) and len(pair) == 2 and all(map(torch.is_tensor, pair))):
        reject("data", "images with labels, Scenes, or a callable to them", type(data).__name__)
    return pair


def _fresh(batch: int, settings: dict[str, Any]) -> Callable[[torch.Generator], tuple]:
    """Batches of fresh scenes, made sixteen at a time, which costs half as much as one by one."""
    stock: list[tuple[Tensor, Tensor]] = []

    def data(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if not stock:
            many = scenes(16 * batch, generator=generator, device=generator.device, **settings)
            stock.extend(zip(many.images.split(batch), many.labels.split(batch), strict=True))
        return stock.pop()

    return data


def _store(folder: str | Path | None) -> Path:
    """The first folder that can be written."""
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    own = [ROOT / "_build" / "weights"] if (ROOT / "pyproject.toml").exists() else []
    chosen = folder or os.environ.get(CACHE)
    for path in [Path(chosen)] if chosen else [*own, home / "seeing-through-models"]:
        with suppress(OSError):
            path.mkdir(parents=True, exist_ok=True)
            if os.access(path, os.W_OK):
                return path
    reject("folder", "a folder that can be written", chosen or home)


def _key(choices: list[Any]) -> str:
    """A hash of choices, of the code that makes data and networks, and of torch's version."""
    found = hashlib.sha256(json.dumps(choices, sort_keys=True, default=repr).encode())
    sources = [Path(module.__file__) for module in (lib.data.digits, lib.training)]
    sources += sorted(Path(lib.data.scenes.__file__).parent.glob("*.py"))
    for path in [Path(__file__), *sources]:
        found.update(path.read_bytes())
    found.update(torch.__version__.encode())
    return found.hexdigest()[:16]


def _load(net: nn.Module, path: Path) -> bool:
    """Whether the weights could be read from the file; if not, the network is as it was."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        came, own = ({k: v.shape for k, v in s.items()} for s in (state, net.state_dict()))
    except Exception:  # what a damaged file raises is not documented
        return False
    if came == own:
        net.load_state_dict(state)
    return came == own


def _save(net: nn.Module, path: Path) -> None:
    """Write to a file beside it and rename: no reader ever sees half of a file."""
    state = {name: value.cpu().contiguous() for name, value in net.state_dict().items()}
    draft = path.with_suffix(f".{os.getpid()}.part")
    try:
        torch.save(state, draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
