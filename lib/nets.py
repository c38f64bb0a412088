"""The few small networks that the chapters share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lib.checks import number, reject, whole
from lib.noise import normal_like
from lib.training import History, fit

ACTIVATIONS = {
    "relu": partial(nn.ReLU, inplace=True),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "leaky_relu": partial(nn.LeakyReLU, inplace=True),
    "selu": nn.SELU,
}


def activation(name: str) -> nn.Module:
    """A non-linearity by name: one of `ACTIVATIONS`."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        reject("activation", f"one of {', '.join(ACTIVATIONS)}", repr(name))
    return ACTIVATIONS[name]()


def columns_of(
    weight: Float[Tensor, "out features"],
    bias: Float[Tensor, "out"],
    x: Float[Tensor, "rows features"],
    sizes: Sequence[int] | None = None,
) -> tuple[Float[Tensor, "_ rows"], ...]:
    """The output of a linear layer, transposed and in groups of outputs, computed as such.

    For what is reduced over groups of outputs: the rows then lie next to each other in memory, and
    no gradient has to be put together from its parts.

    Args:
        weight: of the layer.
        bias: of the layer.
        x: its input.
        sizes: outputs in each group; None is one group.
    """
    sizes = [len(weight)] if sizes is None else list(sizes)
    groups = zip(weight.split(sizes), bias.split(sizes), strict=True)
    return tuple(torch.mm(w, x.mT).add_(b[:, None]) for w, b in groups)


class MLP(nn.Module):
    """A fully connected network; the context, where there is one, is joined to the input.

    Args:
        features: length of the input, which may be 0 where there is context.
        out_features: length of the output.
        hidden: widths of the hidden layers.
        context_features: length of the context.
        activation: between the layers.
        zero_last: start with an output of zero (a coupling layer then starts as the identity).

    Raises:
        ValueError: sizes below one, an unknown activation, nothing to read.
    """

    def __init__(
        self,
        features: int,
        out_features: int,
        hidden: Sequence[int] = (128, 128),
        *,
        context_features: int = 0,
        activation: str = "relu",
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        features = whole("features", features, low=0)
        inputs = features + whole("context_features", context_features, low=0)
        if not inputs:
            reject("features", "something to read, features or context", 0)
        sizes = [inputs, *wholes("hidden", hidden, low=1)]
        _activation(activation)  # refused also where there is no hidden layer
        self.in_features, self.context_features = features, context_features
        self.hidden = nn.Sequential()
        for before, after in pairwise(sizes):
            self.hidden.append(nn.Linear(before, after))
            self.hidden.append(_activation(activation))
        self.last = nn.Linear(sizes[-1], whole("out_features", out_features))
        if zero_last:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Float[Tensor, "*batch features"], context: Float[Tensor, "*batch c"] | None = None
    ) -> Float[Tensor, "*batch out"]:
        return self.last(self._body(x, context))

    def columns(
        self,
        x: Float[Tensor, "rows features"],
        context: Float[Tensor, "rows c"] | None = None,
        sizes: Sequence[int] | None = None,
    ) -> tuple[Float[Tensor, "_ rows"], ...]:
        """The transposed output in groups of the given sizes; see `columns_of`."""
        return columns_of(self.last.weight, self.last.bias, self._body(x, context), sizes)

    def _body(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.hidden(x if context is None else torch.cat([x, context], -1))


_activation = activation


class VAE(nn.Module):
    """A variational autoencoder of small images, with fully connected networks.

    q(z | x) = N(mean(x), diag sd(x)^2), p(z) = N(0, I), p(x | z) = N(decode(z), noise^2 I), and
    the loss is the negative ELBO in nats without the constant of the noise,

        |x - decode(z)|^2 / (2 noise^2) + KL(q(z | x) || p(z)) ,   z ~ q(z | x) .

    Args:
        shape: of an image with values in [0, 1], for example ``(3, 16, 16)``.
        latent: length of z.
        hidden: widths of the encoder; the decoder has them in reverse.
        noise: standard deviation of a pixel given z. Small noise asks for sharp images.
        blur: standard deviation of pixel noise that the encoder sees in training, and the decoder
            does not; the autoencoder then removes such noise.
        activation: between the layers.

    Raises:
        ValueError: sizes below one, noise that is not positive, an unknown activation.

    Source: Kingma and Welling (2014), section 2.3 and appendix B; noise on the input: Im, Ahn,
    Memisevic and Bengio (2017), Denoising criterion for variational auto-encoding framework.
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent: int,
        hidden: Sequence[int] = (256, 256),
        *,
        noise: float = 0.03,
        blur: float = 0.0,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.shape, self.latent = tuple(wholes("shape", shape, low=1)), whole("latent", latent)
        self.noise, self.blur = number("noise", noise), number("blur", blur, zero=True)
        pixels = math.prod(self.shape)
        hidden = wholes("hidden", hidden, low=1)
        self.encoder = MLP(pixels, 2 * self.latent, hidden, activation=activation)
        self.decoder = MLP(self.latent, pixels, hidden[::-1], activation=activation)

    def encode(
        self, x: Float[Tensor, "*batch channels height width"]
    ) -> tuple[Float[Tensor, "*batch latent"], Float[Tensor, "*batch latent"]]:
        """Mean and standard deviation of q(z | x).

        Raises:
            ValueError: images of another shape.
        """
        if x.shape[-len(self.shape) :] != self.shape:
            reject("x", f"images of shape {self.shape}", tuple(x.shape))
        mean, log_sd = self.encoder(x.flatten(-len(self.shape))).chunk(2, -1)
        return mean, log_sd.clamp(-6, 3).exp()

    def decode(
        self, z: Float[Tensor, "*batch latent"]
    ) -> Float[Tensor, "*batch channels height width"]:
        """The mean of p(x | z), in (0, 1)."""
        if z.shape[-1:] != (self.latent,):
            reject("z", f"a last dimension of {self.latent}", tuple(z.shape))
        return self.decoder(z).sigmoid().unflatten(-1, self.shape)

    def loss(
        self,
        x: Float[Tensor, "n channels height width"],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Both terms of the negative ELBO, the mean over the batch, in nats."""
        mean, sd = self.encode(x + self.blur * normal_like(x, generator) if self.blur else x)
        z = mean + sd * normal_like(mean, generator)
        error = (x - self.decode(z)).square().flatten(1).sum(1)
        divergence = ((mean.square() + sd.square() - 1) / 2 - sd.log()).sum(1)
        return {
            "reconstruction": error.mean() / (2 * self.noise**2),
            "divergence": divergence.mean(),
        }

    def fit(
        self, x: Float[Tensor, "n channels height width"], *, steps: int, **options: Any
    ) -> History:
        """Minimise `loss` over images; options are those of `lib.training.fit`.

        Batches of 128 and a learning rate of 0.002 that falls to zero along a cosine, by default.
        """
        common = {"batch_size": min(128, len(x)), "lr": 2e-3, "schedule": "cosine"} | options
        return fit(self, lambda vae, x, generator: vae.loss(x, generator), x, steps=steps, **common)


class SmallClassifier(nn.Module):
    """A small convolutional classifier whose layers have names: the network under study.

    ``conv1`` and ``conv2`` are 3x3 convolutions with stride 2, ``fc3`` is fully connected, all of
    them followed by ReLU; ``logits`` is linear.

    Args:
        shape: of an image, for example ``(3, 16, 16)``.
        classes: number of classes.
        width: channels of the first convolution; the second has twice as many.
        hidden: length of ``fc3``.

    Attributes:
        sizes: length of the flattened representation at each layer.

    Raises:
        ValueError: sizes below one, fewer than two classes.
    """

    def __init__(
        self, shape: Sequence[int], classes: int, *, width: int = 8, hidden: int = 32
    ) -> None:
        super().__init__()
        self.shape = tuple(wholes("shape", shape, low=1))
        if len(self.shape) != 3:
            reject("shape", "channels, height and width", self.shape)
        channels, height, across = self.shape
        width, hidden = whole("width", width), whole("hidden", hidden)
        halves = [-(-height // 2) * -(-across // 2), -(-height // 4) * -(-across // 4)]
        flat = 2 * width * halves[1]
        conv = {"stride": 2, "padding": 1}
        self.layers = nn.ModuleDict(
            {
                "conv1": nn.Sequential(nn.Conv2d(channels, width, 3, **conv), nn.ReLU()),
                "conv2": nn.Sequential(nn.Conv2d(width, 2 * width, 3, **conv), nn.ReLU()),
                "fc3": nn.Sequential(nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU()),
                "logits": nn.Linear(hidden, whole("classes", classes, low=2)),
            }
        )
        self.sizes = dict(zip(self.layers, [width * halves[0], flat, hidden, classes], strict=True))

    def forward(self, x: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n classes"]:
        return self.representations(x)["logits"]

    def fit(
        self,
        x: Float[Tensor, "n channels height width"],
        labels: Int[Tensor, "n"],
        *,
        steps: int,
        blur: float = 0.0,
        **options: Any,
    ) -> History:
        """Minimise the cross-entropy.

        Batches of 128 and a learning rate of 0.003 that falls to zero along a cosine, by default.

        Args:
            x: images.
            labels: their classes.
            steps: of the optimiser.
            blur: standard deviation of pixel noise in training.
            **options: of `lib.training.fit`.
        """
        blur = number("blur", blur, zero=True)

        def loss(net: SmallClassifier, batch: tuple, generator: torch.Generator) -> Tensor:
            x, labels = batch
            return cross_entropy(net(x + blur * normal_like(x, generator) if blur else x), labels)

        common = {"batch_size": min(128, len(x)), "lr": 3e-3, "schedule": "cosine"} | options
        return fit(self, loss, (x, labels), steps=steps, **common)

    def representations(
        self, x: Float[Tensor, "n channels height width"]
    ) -> dict[str, Float[Tensor, "n _"]]:
        """What each layer hands on, flattened, by name.

        Raises:
            ValueError: images of another shape.
        """
        if x.shape[1:] != self.shape:
            reject("x", f"images of shape {self.shape}", tuple(x.shape))
        found = {}
        for name, layer in self.layers.items():
            x = layer(x)
            found[name] = x.flatten(1)
        return found


def wholes(argument: str, values: Sequence[int], *, low: int = 0) -> list[int]:
    """A list of integers of at least `low`, or a ``ValueError``."""
    if not isinstance(values, Iterable) or isinstance(values, str):
        reject(argument, "a sequence of integers", repr(values))
    return [whole(argument, value, low=low) for value in values]


def check_network(network: nn.Module | None) -> nn.Module | None:
    """The argument, if it is a module or None."""
    if network is not None and not isinstance(network, nn.Module):
        reject("network", "a Module or None", type(network).__name__)
    return network
