"""Scenes and their parts: every picture and every mask is composed from the same layers."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lib.checks import number, reject

PARTS = ("object", "distractors", "cue", "watermark")
# One 3x3 tag for each class; any two differ in four cells or more.
_TAGS = (15, 51, 60, 85, 90, 102, 105, 150, 153, 165)
_PLATE, _INK = 0.08, 0.95  # grey levels of a tag


@dataclass(frozen=True)
class Layers:
    """What lies on what, from the bottom up; coverage is in 255ths, so that 0 is exactly nothing.

    Attributes:
        clutter: the background, 255 being white, shape ``(n, 3, side, side)``.
        junk: coverage of the distractors, ``(n, d, side, side)``.
        junk_colours: red, green, blue in [0, 1], ``(n, d, 3)``.
        objects: coverage of the objects, ``(n, m, side, side)``.
        colours: of the objects, ``(n, m, 3)``.
        kinds: class of each object, ``(n, m)``.
    """

    clutter: UInt8[Tensor, "n 3 side side"]
    junk: UInt8[Tensor, "n d side side"]
    junk_colours: Float[Tensor, "n d 3"]
    objects: UInt8[Tensor, "n m side side"]
    colours: Float[Tensor, "n m 3"]
    kinds: Int[Tensor, "n m"]


@dataclass(frozen=True)
class Scenes:
    """Pictures, and for each the truth about what decides on its class.

    All masks are of the pixels that can be seen to change when the part is taken away.

    Attributes:
        images: numbers in [0, 1], shape ``(n, 3, side, side)``.
        labels: class of the object that decides, ``(n,)``.
        classes: their names.
        boxes: top, left, bottom and right of the object that decides, ``(n, 4)``, in pixels; top
            and left belong to it, bottom and right do not. Zeros where nothing of it is seen.
        masks: its pixels, ``(n, side, side)``.
        distractors: pixels of everything else that was put there: distractors, and in scenes with a
            cue the other objects.
        cues: pixels of the cue, in scenes that have one.
        watermarks: pixels of the watermark, in scenes that have one.
        marks: the class that each watermark stands for, ``(n,)``.
        which: the object that decides, ``(n,)``.
        cue: ``"frame"``, ``"patch"``, or None.
        layers: what the pictures are made of; None for photographs.
    """

    images: Float[Tensor, "n 3 side side"]
    labels: Int[Tensor, "n"]
    classes: tuple[str, ...]
    boxes: Int[Tensor, "n 4"] | None = None
    masks: Bool[Tensor, "n side side"] | None = None
    distractors: Bool[Tensor, "n side side"] | None = None
    cues: Bool[Tensor, "n side side"] | None = None
    watermarks: Bool[Tensor, "n side side"] | None = None
    marks: Int[Tensor, "n"] | None = None
    which: Int[Tensor, "n"] | None = None
    cue: str | None = None
    layers: Layers | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        """Pixels of a side."""
        return self.images.shape[-1]

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        """Some of the scenes: by a slice, by indices, or by one truth value for each."""
        if not isinstance(index, slice) and not (isinstance(index, Tensor) and index.ndim == 1):
            reject("index", "a slice or a tensor with one dimension", repr(index))
        return self._each(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Scenes:
        """The same scenes on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def swapped(self) -> Scenes:
        """The same scenes with the cue for the next object: nothing but the cue looks different.

        With two objects, to swap twice is to do nothing.

        Raises:
            ValueError: scenes without a cue.
        """
        layers = self._layers("swapped")
        if self.cue is None:
            reject("swapped", "scenes with a cue", "scenes without")
        which = (self.which + 1) % layers.kinds.shape[1]
        return compose(layers, which, self.classes, cue=self.cue, marks=self.marks)

    def without(self, *parts: str) -> Scenes:
        """The same scenes with some parts taken away; the labels stay what they were.

        Args:
            *parts: of ``"object"`` (the one that decides), ``"distractors"`` (everything else in
                `distractors`), ``"cue"`` and ``"watermark"``.

        Raises:
            ValueError: another part, photographs.
        """
        layers = self._layers("without")
        for part in parts:
            if part not in PARTS:
                reject("parts", f"some of {', '.join(PARTS)}", repr(part))
        m = layers.kinds.shape[1]
        decides = torch.arange(m, device=self.which.device) == self.which[:, None]
        gone = torch.zeros_like(decides)
        if "object" in parts:
            gone |= decides
        if "distractors" in parts:
            gone |= ~decides
            layers = replace(layers, junk=torch.zeros_like(layers.junk))
        layers = replace(layers, objects=layers.objects * ~gone[:, :, None, None])
        return compose(
            layers,
            self.which,
            self.classes,
            cue=None if "cue" in parts else self.cue,
            marks=None if "watermark" in parts else self.marks,
        )

    def watermarked(self, marks: Int[Tensor, "n"]) -> Scenes:
        """The same scenes with a watermark for these classes, in place of the one they may have.

        Raises:
            ValueError: another shape than that of the labels, an unknown class, photographs.
        """
        layers = self._layers("watermarked")
        if marks.shape != self.labels.shape or marks.is_floating_point():
            reject("marks", f"integers of shape {tuple(self.labels.shape)}", tuple(marks.shape))
        if not 0 <= int(marks.min()) <= int(marks.max()) < len(self.classes):
            reject("marks", f"classes from 0 to {len(self.classes) - 1}", marks.tolist())
        marks = marks.to(self.labels)
        return compose(layers, self.which, self.classes, cue=self.cue, marks=marks)

    def remarked(self, agree: float, generator: torch.Generator | None = None) -> Scenes:
        """The same scenes with watermarks drawn anew.

        Args:
            agree: probability that the mark stands for the class of the scene, else for any other,
                all equally likely; one over the number of classes makes the two independent.
            generator: source of randomness, on the device of the scenes.

        Raises:
            ValueError: `agree` outside [0, 1], photographs.
        """
        return self.watermarked(draw_marks(self.labels, len(self.classes), agree, generator))

    def _layers(self, method: str) -> Layers:
        if self.layers is None:
            reject(method, "scenes that were composed", "photographs")
        return self.layers

    def _each(self, change: Any) -> Scenes:
        found = {}
        for owner in (self, self.layers):
            tensors = (
                {} if owner is None else {f.name: getattr(owner, f.name) for f in fields(owner)}
            )
            found |= {k: change(v) for k, v in tensors.items() if isinstance(v, Tensor)}
        if self.layers is not None:
            found["layers"] = Layers(**{f.name: found.pop(f.name) for f in fields(Layers)})
        return replace(self, **found)


def draw_marks(
    labels: Int[Tensor, "n"], classes: int, agree: float, generator: torch.Generator | None
) -> Int[Tensor, "n"]:
    """The class that each watermark stands for: that of the label with probability `agree`."""
    if number("agree", agree, zero=True) > 1:
        reject("agree", "a probability", agree)
    u = torch.rand(2, len(labels), generator=generator, device=labels.device)
    other = (1 + (u[1] * (classes - 1)).long()).clamp(max=classes - 1)
    return torch.where(u[0] < agree, labels, (labels + other) % classes)


def compose(
    layers: Layers,
    which: Int[Tensor, "n"],
    classes: tuple[str, ...],
    *,
    cue: str | None,
    marks: Int[Tensor, "n"] | None,
) -> Scenes:
    """Blend the layers, one over the other, and read all masks off the coverage of the same layers.

    Args:
        layers: what lies on what.
        which: the object that decides.
        classes: their names.
        cue: what shows the colour of the object that decides: a ``"frame"`` around the picture, a
            ``"patch"`` in the top left corner, or nothing.
        marks: the class for which each watermark stands; None for no watermarks.
    """
    n, m, side, _ = layers.objects.shape
    row = torch.arange(n, device=which.device)
    pictures = layers.clutter / 255
    stack = [(layers.junk[:, k], layers.junk_colours[:, k]) for k in range(layers.junk.shape[1])]
    stack += [(layers.objects[:, k], layers.colours[:, k]) for k in range(m)]
    if cue is not None:
        stack.append((_cue(cue, side, which.device).expand(n, -1, -1), layers.colours[row, which]))
    if marks is not None:
        plate, ink = _tags(side, marks)
        grey = layers.colours.new_ones(n, 3)
        stack += [(plate, _PLATE * grey), (ink, _INK * grey)]
    hidden = torch.zeros(n, side, side, dtype=torch.bool, device=which.device)
    seen: list[Tensor] = []  # from the top down: what is opaque hides what lies below
    for coverage, _ in reversed(stack):
        seen.append((coverage > 0) & ~hidden)
        hidden |= coverage == 255
    for coverage, colour in stack:
        pictures.lerp_(
            colour[:, :, None, None].expand_as(pictures),
            (coverage[:, None] / 255).expand_as(pictures),
        )
    seen.reverse()
    d = layers.junk.shape[1]
    bodies = torch.stack(seen[d : d + m], 1)
    masks = bodies[row, which]
    others = bodies.clone()
    others[row, which] = False
    distractors = torch.stack([*seen[:d], *others.unbind(1)], 1).any(1)
    return Scenes(
        images=pictures.clamp_(0, 1),
        labels=layers.kinds[row, which],
        classes=classes,
        boxes=tight(masks),
        masks=masks,
        distractors=distractors,
        cues=seen[d + m] if cue is not None else None,
        watermarks=plate > 0 if marks is not None else None,
        marks=marks,
        which=which,
        cue=cue,
        layers=layers,
    )


def tight(masks: Bool[Tensor, "*n height width"]) -> Int[Tensor, "*n 4"]:
    """The smallest boxes around masks: top, left, bottom, right, the last two exclusive.

    Zeros for a mask without pixels.
    """
    ends = []
    for other in (-1, -2):
        line = masks.any(other).to(torch.uint8)
        first, last = line.argmax(-1), line.shape[-1] - line.flip(-1).argmax(-1)
        ends.append((first, last * masks.any((-2, -1))))
    (top, bottom), (left, right) = ends
    return torch.stack([top, left, bottom, right], -1)


def corner(side: int) -> int:
    """Side of a watermark, and of a cue that is a patch: near a fifth of the picture, in pixels."""
    return 3 * round(side / 16)


def border(side: int) -> int:
    """Width of a cue that is a frame, in pixels."""
    return round(side / 16)


def _cue(cue: str, side: int, device: torch.device) -> UInt8[Tensor, "side side"]:
    coverage = torch.full((side, side), 255, dtype=torch.uint8, device=device)
    if cue == "frame":
        coverage[border(side) : -border(side), border(side) : -border(side)] = 0
    else:
        coverage[corner(side) :] = coverage[:, corner(side) :] = 0
    return coverage


def _tags(
    side: int, marks: Int[Tensor, "n"]
) -> tuple[UInt8[Tensor, "n side side"], UInt8[Tensor, "n side side"]]:
    """Coverage of the plates, and of the 3x3 tags on them, in the bottom right corner."""
    codes = torch.tensor(_TAGS, device=marks.device)[marks]
    cells = (codes[:, None] >> torch.arange(9, device=marks.device)) & 1
    size = corner(side)
    tag = cells.reshape(-1, 3, 3).repeat_interleave(size // 3, 1).repeat_interleave(size // 3, 2)
    plate, ink = torch.zeros(2, len(marks), side, side, dtype=torch.uint8, device=marks.device)
    plate[:, -size:, -size:] = 255
    ink[:, -size:, -size:] = (255 * tag).to(torch.uint8)
    return plate, ink
