"""What scenes are put together from: coverage of shapes, digits and distractors, and clutter."""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from lib.data.digits import digits

SHAPES = ("disc", "square", "triangle", "cross", "ring", "star")
DIGITS = tuple("0123456789")
SPLITS = ("train", "validation", "test")
REACH = 1.15  # how far an object may reach, in its radii: the corners of a digit's square
_HALF = 0.8  # half the side of a digit's square, in radii
_FACTORS = (1, 2, 3, 4, 6, 8)  # by which the photographs are shrunk
_SEEN = 96  # pixels of the photograph that a patch spans at least: less is smooth
_WAVES = 4  # of the outline of a blob


def windows(
    centre: Float[Tensor, "k 2"], radius: Float[Tensor, "k"], side: int, largest: float
) -> tuple[Float[Tensor, "k p p"], Float[Tensor, "k p p"], Int[Tensor, "k p p"]]:
    """Local coordinates of the pixels around each object, and where they are in its picture.

    Args:
        centre: row and column, in pixels.
        radius: of each object, in pixels.
        side: of the pictures.
        largest: radius that the windows have room for, in pixels.

    Returns:
        Coordinates u (right) and v (down) in radii from the centre, of the pixels' middles; flat
        indices of these pixels in a picture.
    """
    size = min(2 * math.ceil(REACH * largest + 1) + 1, side)
    corner = (centre - size / 2).round().long().clamp(0, side - size)
    pixels = corner[:, :, None] + torch.arange(size, device=centre.device)
    local = (pixels + 0.5 - centre[:, :, None]) / radius[:, None, None]
    v, u = local[:, 0, :, None].expand(-1, -1, size), local[:, 1, None, :].expand(-1, size, -1)
    return u, v, pixels[:, 0, :, None] * side + pixels[:, 1, None, :]


def paste(
    coverage: Float[Tensor, "k p p"], where: Int[Tensor, "k p p"], side: int
) -> UInt8[Tensor, "k side side"]:
    """Coverage in whole 255ths, each window in its place in a picture that is 0 elsewhere."""
    levels = (coverage * 255).round().to(torch.uint8)
    empty = levels.new_zeros(len(levels), side * side)
    return empty.scatter_(1, where.flatten(1), levels.flatten(1)).reshape(-1, side, side)


def shapes(
    u: Float[Tensor, "k p p"],
    v: Float[Tensor, "k p p"],
    radius: Float[Tensor, "k"],
    kinds: Int[Tensor, "k"],
) -> Float[Tensor, "k p p"]:
    """Share of each pixel that a shape covers: a ramp one pixel wide, exactly 0 beyond.

    Args:
        u: to the right, in radii.
        v: down, in radii.
        radius: in pixels.
        kinds: index in `SHAPES`.
    """
    distance = torch.empty_like(u, memory_format=torch.contiguous_format)
    for kind, edge_of in enumerate((_disc, _square, _triangle, _cross, _ring, _star)):
        rows = (kinds == kind).nonzero()[:, 0]
        distance[rows] = edge_of(u[rows], v[rows])
    return (0.5 - distance * radius[:, None, None]).clamp_(0, 1)


def glyphs(
    u: Float[Tensor, "k p p"], v: Float[Tensor, "k p p"], images: UInt8[Tensor, "k 1 8 8"]
) -> Float[Tensor, "k p p"]:
    """Coverage of digits: bicubic between the middles of their 8x8 pixels, with sharper edges."""
    at = torch.stack([u, v], -1) / _HALF
    ink = grid_sample(images / 16, at, mode="bicubic", align_corners=False)[:, 0]
    return (1.8 * ink - 0.5).clamp_(0, 1)


@cache
def bundled(split: str) -> tuple[Tensor, Tensor]:
    """Digits of one part, sorted by class, and where each class starts (with the end: 11)."""
    part = getattr(digits(), split)
    order = part.labels.argsort(stable=True)
    counts = torch.bincount(part.labels, minlength=10)
    return part.images[order], torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def pick(
    labels: Int[Tensor, "*k"], u: Float[Tensor, "*k"], split: str
) -> UInt8[Tensor, "*k 1 8 8"]:
    """For each label one digit of a part, chosen by a number in [0, 1)."""
    images, starts = (tensor.to(labels.device) for tensor in bundled(split))
    first, end = starts[labels], starts[labels + 1]
    return images[torch.minimum(first + (u * (end - first)).long(), end - 1)]


def strokes(
    u: Float[Tensor, "k p p"],
    v: Float[Tensor, "k p p"],
    radius: Float[Tensor, "k"],
    bend: Float[Tensor, "k"],
) -> Float[Tensor, "k p p"]:
    """Coverage of bent lines: ``v = bend (u^2 - 1/2)`` for ``|u| < 0.9``, 0.3 radii wide."""
    bend = bend[:, None, None]
    slope = (1 + (2 * bend * u).square()).sqrt()
    across = (v - bend * (u.square() - 0.5)).abs() / slope - 0.15
    return (0.5 - torch.maximum(across, u.abs() - 0.9) * radius[:, None, None]).clamp_(0, 1)


def blobs(
    u: Float[Tensor, "k p p"],
    v: Float[Tensor, "k p p"],
    radius: Float[Tensor, "k"],
    waves: Float[Tensor, "k 4 2"],
) -> Float[Tensor, "k p p"]:
    """Coverage of lumps, whose outline is a circle with random waves on it.

    Args:
        u: to the right, in radii.
        v: down, in radii.
        radius: in pixels.
        waves: for 2, 3, 4, 5 waves in a turn, factors of cosine and sine: standard normal.
    """
    angle = torch.atan2(v, u)
    outline = torch.full_like(angle, 0.6)
    for k in range(_WAVES):
        cos, sin = waves[:, k, 0, None, None], waves[:, k, 1, None, None]
        outline += 0.1 * (cos * ((k + 2) * angle).cos() + sin * ((k + 2) * angle).sin())
    distance = (u.square() + v.square()).sqrt() - outline.clamp(0.2, 1)
    return (0.5 - distance * radius[:, None, None]).clamp_(0, 1)


def scrambled(
    u: Float[Tensor, "k p p"], v: Float[Tensor, "k p p"]
) -> tuple[Float[Tensor, "k p p"], Float[Tensor, "k p p"], Float[Tensor, "k p p"]]:
    """Coordinates that cut an object into quarters and swap them crosswise; 0 outside of them."""
    inside = ((u.abs() < 0.8) & (v.abs() < 0.8)).to(u)
    return torch.where(u < 0, u + 0.8, u - 0.8), torch.where(v < 0, v + 0.8, v - 0.8), inside


def clutter(
    n: int, side: int, generator: torch.Generator | None, device: torch.device | str
) -> UInt8[Tensor, "n 3 side side"]:
    """Random patches of the two photographs that scikit-learn carries, shrunk and mirrored.

    A patch spans at least 96 pixels of its photograph where the photograph is large enough.
    """
    choices = [f for f in _FACTORS if 427 // f >= side and f * side >= min(_SEEN, 3 * side)]
    u = torch.rand(n, 5, generator=generator, device=device)
    factor = (u[:, 0] * len(choices)).long().clamp(max=len(choices) - 1)
    found = torch.empty(n, 3, side, side, dtype=torch.uint8, device=device)
    line = torch.arange(side, device=device)
    for level, choice in enumerate(choices):
        photographs = _photographs(choice).to(device)
        rows = (factor == level).nonzero()[:, 0]
        room = [size - side + 1 for size in photographs.shape[1:3]]
        top, left = (
            (u[rows, 2 + k] * room[k]).long().clamp(max=room[k] - 1)[:, None] for k in (0, 1)
        )
        mirrored = torch.where(u[rows, 4, None] < 0.5, line, side - 1 - line)
        which = (u[rows, 1] < 0.5).long()[:, None, None]
        patch = photographs[which, (top + line)[:, :, None], (left + mirrored)[:, None, :]]
        found[rows] = patch.permute(0, 3, 1, 2)
    return found


@cache
def _photographs(factor: int) -> UInt8[Tensor, "2 height width 3"]:
    """The photographs, shrunk by averaging over squares."""
    from sklearn.datasets import load_sample_image  # with pillow: takes a second

    both = [torch.tensor(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    shrunk = avg_pool2d(torch.stack(both).permute(0, 3, 1, 2).float(), factor)
    return shrunk.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


# Signed distances to the edge in radii, negative inside; exact for straight edges.


def _fold(u: Tensor, v: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Polar coordinates with the angle folded into [-pi/k, pi/k], about one of k axes."""
    sector = 2 * math.pi / k
    angle = torch.atan2(v, u)
    return (u.square() + v.square()).sqrt(), angle - sector * (angle / sector).round()


def _disc(u: Tensor, v: Tensor) -> Tensor:
    return (u.square() + v.square()).sqrt() - 0.85


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.72


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    r, angle = _fold(u, v, 3)
    return r * angle.cos() - 0.5


def _cross(u: Tensor, v: Tensor) -> Tensor:
    a, b = u.abs(), v.abs()
    long, wide = torch.maximum(a, b), torch.minimum(a, b)
    return torch.maximum(long - 0.92, wide - 0.3)


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return ((u.square() + v.square()).sqrt() - 0.7).abs() - 0.2


def _star(u: Tensor, v: Tensor) -> Tensor:
    """Five points at radius 1, the notches between them at radius 0.45."""
    r, angle = _fold(u, v, 5)
    x, y = r * angle.cos(), r * angle.sin().abs()
    dx, dy = 0.45 * math.cos(math.pi / 5) - 1, 0.45 * math.sin(math.pi / 5)
    return ((x - 1) * dy - y * dx) / math.hypot(dx, dy)
