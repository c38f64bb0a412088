"""Photographs of one's own, as scenes."""

from __future__ import annotations

from pathlib import Path

import torch

from lib.checks import reject, whole
from lib.data.scenes.scene import Scenes

_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"}


def folder(path: str | Path, side: int = 224, *, device: torch.device | str = "cpu") -> Scenes:
    """Photographs from a folder whose sub-folders are the classes, sorted by name.

    The shorter side is resized to ``side / 0.875``, from which the middle is cut: as it is usual
    for ImageNet. Without sub-folders all photographs are of one class, the folder's name.

    Args:
        path: the folder.
        side: of the pictures, in pixels.
        device: where the tensors go.

    Returns:
        Scenes with images, labels and classes; what is not known about photographs is None.

    Raises:
        ValueError: no such folder, no photographs in it, one that cannot be read.
    """
    import numpy as np
    from PIL import Image, ImageOps

    root = Path(path)
    if not root.is_dir():
        reject("path", "a folder", str(path))
    side = whole("side", side)
    inner = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    classes = inner or [root]
    images, labels = [], []
    for label, owner in enumerate(classes):
        for file in sorted(p for p in owner.rglob("*") if p.suffix.lower() in _ENDINGS):
            try:
                with Image.open(file) as opened:
                    picture = ImageOps.exif_transpose(opened).convert("RGB")
            except OSError as error:
                reject("path", "photographs that can be read", f"{file} ({error})")
            scale = side / 0.875 / min(picture.size)
            size = [max(side, round(scale * length)) for length in picture.size]
            picture = picture.resize(size, Image.Resampling.BICUBIC)
            left, top = ((length - side) // 2 for length in size)
            pixels = np.array(picture.crop((left, top, left + side, top + side)))
            images.append(torch.from_numpy(pixels))
            labels.append(label)
    if not images:
        reject("path", "photographs in the folder or its sub-folders", str(path))
    stacked = torch.stack(images).permute(0, 3, 1, 2).to(device).float() / 255
    names = tuple(owner.name for owner in classes)
    return Scenes(stacked.contiguous(), torch.tensor(labels, device=stacked.device), names)
