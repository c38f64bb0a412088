"""Pairs of digits in colours, and the oracle that reads them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.checks import reject
from lib.concepts.pairs import Pairs, class_pairs, draw_labels
from lib.data.digits import Images, coloured, inks

DIGIT, COLOUR = 1, 2


def digit_pairs(
    data: Images,
    n: int,
    generator: torch.Generator | None = None,
    *,
    labels: Int[Tensor, " n"] | None = None,
) -> Pairs:
    """Pictures of pairs of digits in colours.

    Label 1 shares the digit: two images of its class, in two colours. Label 2 shares the colour:
    two images at random. Label -2 shares all but the colour: one image, in two colours. Label 0
    shares nothing. All but the digit cannot be shared, as nobody wrote two digits alike.

    Args:
        data: images and classes.
        n: how many pairs.
        generator: source of randomness, on the CPU.
        labels: of the pairs; None draws 1 and 2 with equal probability.

    Raises:
        ValueError: labels of another length, or others than these.
    """
    labels = draw_labels(n, 2, generator, all_but=0.0, labels=labels)
    if bool((labels == -DIGIT).any()):
        reject("labels", "1, 2, -2 or 0", -DIGIT)
    first, second, _ = class_pairs(data.labels, labels, generator)
    a, colours = coloured(data.images[first], generator)
    others = inks(n, generator, device=colours.device)
    others = torch.where((labels == COLOUR)[:, None], colours, others)
    b, _ = coloured(data.images[second], generator, colours=others)
    return Pairs(a, b, labels)


class DigitReader:
    """Reads digit and colour: a support vector machine on the grey picture, and a closed form.

    The grey picture g is the mean of the channels over its largest value; it does not depend on the
    colour. The colour is the least-squares solution of x = colour * g.

    Args:
        data: images and classes to learn from; they are coloured three times over.
        generator: source of colours and noise.
    """

    def __init__(self, data: Images, generator: torch.Generator | None = None) -> None:
        from sklearn.svm import SVC

        grey = [self.grey(coloured(data.images, generator)[0]) for _ in range(3)]
        self.machine = SVC(C=10, gamma=0.03)
        self.machine.fit(torch.cat(grey).cpu().flatten(1).numpy(), data.labels.repeat(3).cpu())

    @staticmethod
    def grey(pictures: Float[Tensor, "n 3 8 8"]) -> Float[Tensor, "n 8 8"]:
        """Pictures without their colour, with a largest value of one."""
        mean = pictures.mean(1)
        return mean / mean.amax((1, 2), keepdim=True).clamp(min=1e-6)

    @torch.no_grad()
    def read(self, pictures: Float[Tensor, "n 3 8 8"]) -> dict[str, Tensor]:
        """Digits as classes ``(n,)``, colours as numbers ``(n, 3)``."""
        grey = self.grey(pictures)
        digit = self.machine.predict(grey.cpu().flatten(1).numpy())
        weight = grey / grey.square().sum((1, 2), keepdim=True)
        colour = (pictures * weight[:, None]).sum((2, 3))
        return {"digit": torch.as_tensor(digit, device=pictures.device), "colour": colour}
