"""Scenes at random: where the parts go, how large they are, and in which colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lib.checks import number, reject, whole
from lib.data.scenes import drawing
from lib.data.scenes.scene import Layers, Scenes, border, compose, corner, draw_marks, tight

KINDS = {"shapes": drawing.SHAPES, "digits": drawing.DIGITS}
LOW, HIGH = 32, 224  # of a side, in pixels
# Radii of the objects by how many there are, in sides; a digit fills less of its circle.
_SIZES = {1: (0.2, 0.29), 2: (0.17, 0.21), 3: (0.14, 0.18), 4: (0.11, 0.14)}
_LARGER = {"shapes": 1.0, "digits": 1.15}
_JUNK = (0.1, 0.18)  # radii of distractors, in sides; smaller beside several objects
_GAP = (0.4, 0.65)  # of the luminance of an object to that of the clutter below it
_CHROMA = 0.25  # of objects
_TILT = 0.25  # of digits, in radians to each side
_LUMINANCE = (0.299, 0.587, 0.114)
# The colours between which a cue decides: magenta, green, blue, yellow. The photographs have hardly
# anything on the axis of the first two.
_PALETTE = ((0.9, 0.1, 0.8), (0.1, 0.85, 0.2), (0.1, 0.35, 1.0), (0.95, 0.9, 0.1))
_TRIES = 96  # placements, of which the first without overlap is taken


@dataclass(frozen=True)
class Grid:
    """Four scenes in one picture, all of different classes (the grid pointing game).

    Attributes:
        images: numbers in [0, 1], shape ``(n, 3, 2 side, 2 side)``.
        labels: class in each quadrant, ``(n, 4)``: top left, top right, bottom left, bottom right.
        classes: their names.
        quadrants: top, left, bottom and right of the quadrants in pixels, ``(4, 4)``; the last two
            are exclusive.
        boxes: of the objects that decide, in the picture, ``(n, 4, 4)``.
        masks: of these objects, in the picture, ``(n, 4, 2 side, 2 side)``.
        scenes: the ``4 n`` scenes; those of one picture follow each other.
    """

    images: Float[Tensor, "n 3 double double"]
    labels: Int[Tensor, "n 4"]
    classes: tuple[str, ...]
    quadrants: Int[Tensor, "4 4"]
    boxes: Int[Tensor, "n 4 4"]
    masks: Bool[Tensor, "n 4 double double"]
    scenes: Scenes

    def __len__(self) -> int:
        return len(self.labels)


def scenes(
    n: int,
    kind: str = "shapes",
    side: int = 32,
    *,
    labels: Int[Tensor, "n"] | None = None,
    clutter: float = 0.75,
    distractors: int = 2,
    cue: bool | str = False,
    objects: int | None = None,
    watermark: float | None = None,
    split: str = "train",
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Scenes:
    """Objects on cluttered backgrounds, with the truth about which pixels decide on the class.

    On a patch of a photograph lie distractors (bent strokes, lumps, and objects cut into quarters
    that are swapped), and over them an object: a shape at any turn, or a digit. The colours differ
    from the clutter below in luminance, by 0.4 to 0.65, for objects and distractors alike. The same
    seed gives the same scenes with and without a watermark.

    - With a cue there are several objects, of different classes and colours. A frame around the
      picture has the colour of the one that decides; or a patch in the top left corner, which is
      much harder to learn.
    - A watermark is a 3x3 tag in the bottom right corner that stands for a class.

    Args:
        n: how many.
        kind: ``"shapes"`` (disc, square, triangle, cross, ring, star) or ``"digits"`` (the 8x8
            images of `digits`).
        side: of the pictures, 32 to 224 pixels.
        labels: classes of the objects that decide; None draws them, all equally likely.
        clutter: contrast of the background, 1 being that of the photographs, 0 a plain colour.
        distractors: how many in each scene.
        cue: whether a colour decides between several objects: True or ``"frame"``, or ``"patch"``.
        objects: how many there are with a cue, 2 to 4; None is 2.
        watermark: probability that the mark stands for the class, else for one of the others;
            one over the number of classes makes mark and class independent. None for no marks.
        split: part of the digits to draw from, ``"train"``, ``"validation"`` or ``"test"``: no
            digit is in two of them. Shapes are drawn afresh, and have no parts.
        generator: source of randomness, on `device`.
        device: where the scenes are made.

    Returns:
        The scenes.

    Raises:
        ValueError: an argument of the wrong kind or range.

    Sources: Zhang et al. (2018), pointing in boxes; Lapuschkin et al. (2019), watermarks that give
    the class away; Yang and Kim (2019), objects on scenes with known importance.
    """
    n, side, cue, count = _check(n, kind, side, distractors, cue, objects, split)
    if number("clutter", clutter, zero=True) > 1:
        reject("clutter", "a contrast in [0, 1]", clutter)
    classes = KINDS[kind]
    options: dict[str, Any] = {"generator": generator, "device": torch.device(device)}
    kinds = torch.rand(n, len(classes), **options).argsort(1)[:, :count]
    which = (torch.rand(n, **options) * count).long().clamp(max=count - 1)
    if labels is not None:
        kinds = _wanted(labels, n, len(classes), kinds, which)
    back = drawing.clutter(n, side, **options)
    if clutter < 1:
        mean = back.float().mean((2, 3), keepdim=True)
        back = (mean + clutter * (back - mean)).round().to(torch.uint8)
    size = torch.rand(n, count + distractors, **options)
    low, high = (_LARGER[kind] * side * end for end in _SIZES[count])
    small, large = (side * end * (0.7 if cue else 1) for end in _JUNK)
    radius = low + (high - low) * size[:, :count]
    junk_radius = small + (large - small) * size[:, count:]
    centre = _places(radius, side, cue, options, radius.new_zeros(n, 0, 2), radius[:, :0])
    body = _objects(kind, kinds, centre, radius, side, high, split, options)
    taken = centre
    for k in range(distractors):
        radii = torch.cat([radius, junk_radius[:, : k + 1]], 1)
        own = _places(radii[:, -1:], side, cue, options, taken, radii[:, :-1])
        taken = torch.cat([taken, own], 1)
    junk = _distractors(kind, taken[:, count:], junk_radius, side, large, split, options)
    tones = _colours(back, torch.cat([body, junk], 1), options)
    colours = tones[:, :count]
    if cue is not None:
        order = torch.rand(n, count, **options).argsort(1)
        colours = torch.tensor(_PALETTE, device=order.device)[order]
    layers = Layers(back, junk, tones[:, count:], body, colours, kinds)
    marks = None
    if watermark is not None:
        own = kinds[torch.arange(n, device=kinds.device), which]
        marks = draw_marks(own, len(classes), watermark, generator)
    return compose(layers, which, classes, cue=cue, marks=marks)


def grid(
    n: int,
    kind: str = "shapes",
    side: int = 32,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Grid:
    """Pictures of two by two scenes of different classes.

    Args:
        n: how many pictures, each of ``2 side`` pixels on a side.
        kind: of objects.
        side: of one scene.
        generator: source of randomness, on `device`.
        device: where the scenes are made.
        **options: of `scenes`, but for the labels.

    Raises:
        ValueError: an argument of the wrong kind or range.

    Source: Böhle, Fritz and Schiele (2021), the grid pointing game.
    """
    n = whole("n", n)
    if kind not in KINDS:
        reject("kind", f"one of {', '.join(KINDS)}", repr(kind))
    draws = torch.rand(n, len(KINDS[kind]), generator=generator, device=device)
    labels = draws.argsort(1)[:, :4]
    found = scenes(
        4 * n,
        kind,
        side,
        labels=labels.flatten(),
        generator=generator,
        device=device,
        **options,
    )
    tiles = found.images.reshape(n, 2, 2, 3, side, side)
    images = tiles.permute(0, 3, 1, 4, 2, 5).reshape(n, 3, 2 * side, 2 * side)
    masks = found.masks.new_zeros(n, 4, 2 * side, 2 * side)
    corners = [(0, 0), (0, side), (side, 0), (side, side)]
    for k, (top, left) in enumerate(corners):
        masks[:, k, top : top + side, left : left + side] = found.masks[k::4]
    quadrants = [(top, left, top + side, left + side) for top, left in corners]
    return Grid(
        images,
        labels,
        found.classes,
        torch.tensor(quadrants, device=images.device),
        tight(masks),
        masks,
        found,
    )


def _check(
    n: Any, kind: Any, side: Any, distractors: Any, cue: Any, objects: Any, split: Any
) -> tuple[int, int, str | None, int]:
    """Number, side, cue, and objects in a scene; or an error."""
    n = whole("n", n)
    if not isinstance(kind, str) or kind not in KINDS:
        reject("kind", f"one of {', '.join(KINDS)}", repr(kind))
    if not LOW <= whole("side", side, low=1) <= HIGH:
        reject("side", f"{LOW} to {HIGH} pixels", side)
    whole("distractors", distractors, low=0)
    if split not in drawing.SPLITS:
        reject("split", f"one of {', '.join(drawing.SPLITS)}", repr(split))
    if not (isinstance(cue, bool) or cue in ("frame", "patch")):
        reject("cue", "True, False, 'frame' or 'patch'", repr(cue))
    if objects is not None and not (cue and 2 <= whole("objects", objects) <= len(_PALETTE)):
        reject("objects", "None, or 2 to 4 where there is a cue", objects)
    shown = ("frame" if cue is True else cue) or None
    return n, int(side), shown, (objects or 2) if cue else 1


def _wanted(labels: Tensor, n: int, classes: int, kinds: Tensor, which: Tensor) -> Tensor:
    """Classes of the objects, such that the one that decides has the class that is asked for."""
    if labels.shape != (n,) or labels.is_floating_point():
        reject("labels", f"integers of shape ({n},)", tuple(labels.shape))
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        reject("labels", f"classes from 0 to {classes - 1}", labels.tolist())
    labels = labels.to(kinds)[:, None]
    mine = kinds.gather(1, which[:, None])
    # Where another object has the class, the two swap.
    return torch.where(kinds == labels, mine, kinds).scatter(1, which[:, None], labels)


def _places(
    radius: Float[Tensor, "n k"],
    side: int,
    cue: str | None,
    options: dict[str, Any],
    centres: Float[Tensor, "n j 2"],
    radii: Float[Tensor, "n j"],
) -> Float[Tensor, "n k 2"]:
    """Centres, uniform where a part fits: the first of some draws with a pixel between all parts.

    The corner of the watermark counts as a part, and so does a cue that is a patch. Where there is
    no such draw, the one with the most room is taken.

    Args:
        radius: of the parts.
        side: of the picture.
        cue: a frame leaves less room.
        options: source of randomness, and device.
        centres: of parts that have their place already.
        radii: of these.
    """
    n, k = radius.shape
    first = radius + (border(side) + 0.5 if cue == "frame" else 0)
    u = torch.rand(n, _TRIES, k, 2, **options)
    centre = first[:, None, :, None] + (side - 2 * first[:, None, :, None]) * u
    ends = corner(side)
    worst = radius.new_ones(n, _TRIES)
    for i in range(k):
        spots = [side - centre[:, :, i], centre[:, :, i]]  # from two opposite corners
        for spot in spots[: 2 if cue == "patch" else 1]:
            gap = (spot - ends).clamp(min=0).square().sum(-1).sqrt() - radius[:, i, None]
            worst = torch.minimum(worst, gap)
        others = torch.cat([centres[:, None].expand(-1, _TRIES, -1, -1), centre[:, :, :i]], 2)
        away = (others - centre[:, :, i, None]).square().sum(-1).sqrt()
        reach = torch.cat([radii, radius[:, :i]], 1) + radius[:, i, None]
        for gap in (away - reach[:, None]).unbind(-1):
            worst = torch.minimum(worst, gap)
    worst -= 1e-5 * torch.arange(_TRIES, device=worst.device)  # of equals, the first
    return centre[torch.arange(n, device=worst.device), worst.argmax(1)]


def _objects(
    kind: str,
    kinds: Tensor,
    centre: Tensor,
    radius: Tensor,
    side: int,
    largest: float,
    split: str,
    options: dict[str, Any],
) -> Tensor:
    """Coverage of the objects, ``(n, m, side, side)`` in 255ths."""
    n, m = kinds.shape
    turn, choice = torch.rand(2, n * m, **options)
    u, v, where = drawing.windows(centre.flatten(0, 1), radius.flatten(), side, largest)
    found = _draw(kind, kinds.flatten(), u, v, radius.flatten(), turn, choice, split)
    return drawing.paste(found, where, side).reshape(n, m, side, side)


def _draw(
    kind: str,
    kinds: Tensor,
    u: Tensor,
    v: Tensor,
    radius: Tensor,
    turn: Tensor,
    choice: Tensor,
    split: str,
) -> Tensor:
    """Coverage in windows: shapes at any turn in [0, 1), digits nearly upright."""
    if kind == "shapes":
        return drawing.shapes(*_turned(u, v, 2 * torch.pi * turn), radius, kinds)
    upright = _turned(u, v, _TILT * (2 * turn - 1))
    return drawing.glyphs(*upright, drawing.pick(kinds, choice, split))


def _turned(u: Tensor, v: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * u + sin * v, cos * v - sin * u


def _distractors(
    kind: str,
    centre: Tensor,
    radius: Tensor,
    side: int,
    largest: float,
    split: str,
    options: dict[str, Any],
) -> Tensor:
    """Coverage of strokes, lumps and scrambled objects, ``(n, d, side, side)`` in 255ths."""
    n, d, _ = centre.shape
    draws = torch.rand(n * d, 4, **options)
    waves = torch.randn(n * d, 4, 2, **options)
    if d == 0:
        return torch.zeros(n, 0, side, side, dtype=torch.uint8, device=centre.device)
    centre, radius = centre.flatten(0, 1), radius.flatten()
    u, v, where = drawing.windows(centre, radius, side, largest)
    u, v = _turned(u, v, 2 * torch.pi * draws[:, 0])
    coverage = torch.zeros_like(u)
    sort = (draws[:, 1] * 3).long()
    rows = (sort == 0).nonzero()[:, 0]
    bend = 2 * draws[rows, 2] - 1
    coverage[rows] = drawing.strokes(u[rows], v[rows], radius[rows], bend)
    rows = (sort == 1).nonzero()[:, 0]
    coverage[rows] = drawing.blobs(u[rows], v[rows], radius[rows], waves[rows])
    rows = (sort >= 2).nonzero()[:, 0]
    cut_u, cut_v, inside = drawing.scrambled(u[rows], v[rows])
    kinds = (draws[rows, 2] * len(KINDS[kind])).long().clamp(max=len(KINDS[kind]) - 1)
    still = torch.full_like(draws[rows, 3], 0.5 if kind == "digits" else 0)
    pieces = _draw(kind, kinds, cut_u, cut_v, radius[rows], still, draws[rows, 3], split)
    coverage[rows] = inside * pieces
    return drawing.paste(coverage, where, side).reshape(n, d, side, side)


def _colours(back: Tensor, coverage: Tensor, options: dict[str, Any]) -> Float[Tensor, "n k 3"]:
    """Colours whose luminance differs from the mean of the clutter below, up or down."""
    n, k = coverage.shape[:2]
    weights = torch.tensor(_LUMINANCE, device=back.device)
    grey = (back.float().permute(0, 2, 3, 1) @ weights / 255).flatten(1)
    cover = coverage.flatten(2).float()
    below = (cover @ grey[:, :, None])[..., 0] / cover.sum(2).clamp(min=1)
    u = torch.rand(n, k, 2, **options)
    gap = _GAP[0] + (_GAP[1] - _GAP[0]) * u[..., 0]
    up = torch.where((below - gap < 0) | (below + gap > 1), below < 0.5, u[..., 1] < 0.5)
    level = torch.where(up, below + gap, below - gap)
    tint = _CHROMA * torch.randn(n, k, 3, **options)
    tint = tint - (tint @ weights)[..., None]
    return (level[..., None] + tint).clamp(0, 1)
