import math

import pytest
import torch
from PIL import Image

from lib.data.digits import digits
from lib.data.scenes import KINDS, folder, grid, scenes, tight
from lib.data.scenes.drawing import bundled
from lib.data.scenes.scene import _TAGS

TENSORS = ("images", "labels", "boxes", "masks", "distractors")


def seeded(*arguments, seed=0, **options):
    return scenes(*arguments, generator=torch.Generator().manual_seed(seed), **options)


def changed(a, b):
    """Pixels in which two pictures differ."""
    return (a.images != b.images).any(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [32, 48, 64, 97, 224])
def test_shapes_dtypes_and_ranges(kind, side):
    n = 3
    found = seeded(n, kind, side, cue=True, watermark=0.5)
    assert found.images.shape == (n, 3, side, side)
    assert found.images.dtype == torch.float32
    assert found.images.is_contiguous()
    assert 0 <= found.images.min() <= found.images.max() <= 1
    assert found.labels.shape == found.marks.shape == found.which.shape == (n,)
    assert found.labels.dtype == torch.int64
    assert found.boxes.shape == (n, 4)
    for masks in (found.masks, found.distractors, found.cues, found.watermarks):
        assert masks.shape == (n, side, side)
        assert masks.dtype == torch.bool
        assert masks.any((1, 2)).all()
    assert found.side == side
    assert len(found) == n
    assert found.classes == KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cue", [False, True, "patch"])
@pytest.mark.parametrize("side", [32, 64])
def test_masks_are_where_the_picture_changes_when_a_part_is_taken_away(kind, cue, side):
    found = seeded(60, kind, side, cue=cue, watermark=0.5)
    masks = {
        "object": found.masks,
        "distractors": found.distractors,
        "watermark": found.watermarks,
    }
    masks |= {"cue": found.cues} if cue else {}
    for part, mask in masks.items():
        difference = changed(found, found.without(part))
        assert not (difference & ~mask).any()
        # What has by chance the colour of what it hides does not change: a faint edge, one in 255.
        assert (difference & mask).sum() > 0.998 * mask.sum()


def test_without_everything_there_is_clutter(generator):
    found = scenes(20, cue=True, watermark=0.5, generator=generator)
    empty = found.without("object", "distractors", "cue", "watermark")
    assert torch.equal(empty.images, found.layers.clutter / 255)
    assert torch.equal(empty.labels, found.labels)
    assert not empty.masks.any()
    assert not empty.distractors.any()
    assert empty.boxes.abs().sum() == 0
    assert empty.cues is empty.watermarks is empty.marks is None
    assert torch.equal(seeded(5).images, seeded(5).without().images)


def test_boxes_are_tight():
    found = seeded(50, side=48)
    for (top, left, bottom, right), mask in zip(found.boxes.tolist(), found.masks, strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        assert (top, left) == (rows.min(), columns.min())
        assert (bottom, right) == (rows.max() + 1, columns.max() + 1)
    whole = torch.ones(4, 6, dtype=torch.bool)
    assert tight(whole).tolist() == [0, 0, 4, 6]
    assert tight(~whole).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("cue", [True, "patch"])
@pytest.mark.parametrize("objects", [2, 3, 4])
def test_a_swapped_cue_changes_nothing_but_the_cue_and_label_and_box_follow(objects, cue):
    found = seeded(40, side=64, cue=cue, objects=objects, watermark=0.9)
    swapped = found.swapped()
    difference = changed(found, swapped)
    assert torch.equal(difference, found.cues)
    assert torch.equal(found.cues, swapped.cues)
    assert (swapped.labels != found.labels).all()
    assert (swapped.boxes != found.boxes).any(1).all()
    assert not (found.masks & swapped.masks).all(-1).all(-1).any()
    # The other object was there before, among what does not decide.
    assert not (swapped.masks & ~found.distractors & ~found.masks).any()
    assert torch.equal(found.masks | found.distractors, swapped.masks | swapped.distractors)
    assert torch.equal(found.marks, swapped.marks)
    for _ in range(objects - 1):
        swapped = swapped.swapped()
    for name in TENSORS:
        assert torch.equal(getattr(found, name), getattr(swapped, name)), name


def test_the_cue_has_the_colour_of_the_object_that_decides():
    found = seeded(30, side=64, cue=True, objects=4)
    row = torch.arange(30)
    colour = found.layers.colours[row, found.which]
    assert torch.allclose(found.images[:, :, 2, 2], colour)
    patch = seeded(30, side=64, cue="patch")
    assert torch.equal(patch.cues[0].nonzero().max(0)[0], torch.tensor([11, 11]))
    colour = patch.layers.colours[row, patch.which]
    assert torch.allclose(patch.images[:, :, 2, 2], colour)
    apart = torch.cdist(found.layers.colours, found.layers.colours) + 9 * torch.eye(4)
    assert apart.min() > 0.3
    assert (found.layers.kinds.sort(1)[0].diff() > 0).all()


@pytest.mark.parametrize("cue", [True, "patch"])
def test_parts_hardly_ever_overlap(cue):
    found = seeded(500, cue=cue, watermark=0.5)
    objects = found.layers.objects > 0
    assert not (seeded(500).layers.objects > 0)[:, 0][seeded(500, watermark=0.5).watermarks].any()
    corners = found.cues | found.watermarks
    assert ((objects[:, 0] & objects[:, 1]).any((1, 2))).float().mean() < 0.02
    assert ((objects.any(1) & corners).any((1, 2))).float().mean() < 0.02


@pytest.mark.parametrize("agree", [0.0, 0.95, 1.0, 1 / 6])
def test_the_share_of_agreeing_watermarks(agree):
    n = 2000
    found = seeded(n, watermark=agree, distractors=0)
    share = float((found.marks == found.labels).float().mean())
    assert abs(share - agree) <= 4 * math.sqrt(agree * (1 - agree) / n)
    # Whatever the label, the marks that do not agree are equally likely.
    off = (found.marks - found.labels)[found.marks != found.labels] % 6
    if len(off):
        counts = torch.bincount(off, minlength=6)[1:].double()
        chi2 = ((counts - len(off) / 5) ** 2 / (len(off) / 5)).sum()
        assert chi2 < 18.5  # 0.999 of four degrees of freedom


def test_a_watermark_can_be_removed_and_drawn_anew_on_the_same_scenes(generator):
    plain, marked = seeded(30, "digits"), seeded(30, "digits", watermark=0.95)
    assert torch.equal(marked.without("watermark").images, plain.images)
    assert torch.equal(marked.labels, plain.labels)
    assert torch.equal(plain.watermarked(marked.marks).images, marked.images)
    again = marked.remarked(0.0, generator)
    assert (again.marks != again.labels).all()
    assert not (changed(again, marked) & ~marked.watermarks).any()
    assert torch.equal(again.masks, marked.masks)
    different = again.marks != marked.marks
    assert torch.equal(changed(again, marked).any((1, 2)), different)


def test_tags_differ_in_four_cells():
    for k, one in enumerate(_TAGS):
        assert all((one ^ other).bit_count() >= 4 for other in _TAGS[:k])
    assert len(_TAGS) >= max(map(len, KINDS.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_grid_is_four_scenes_of_different_classes(kind, generator):
    found = grid(7, kind, 48, generator=generator, watermark=0.5)
    assert found.images.shape == (7, 3, 96, 96)
    assert len(found) == 7
    assert (found.labels.sort(1)[0].diff() > 0).all()
    assert torch.equal(found.labels.flatten(), found.scenes.labels)
    assert torch.equal(found.masks.any(1).sum((1, 2)), found.masks.sum((1, 2, 3)))
    for k, (top, left, bottom, right) in enumerate(found.quadrants.tolist()):
        own = found.scenes[k::4]
        assert torch.equal(found.images[..., top:bottom, left:right], own.images)
        assert torch.equal(found.masks[:, k, top:bottom, left:right], own.masks)
        assert torch.equal(found.boxes[:, k] - torch.tensor([top, left, top, left]), own.boxes)


@pytest.mark.parametrize("options", [{}, {"kind": "digits"}, {"cue": True, "watermark": 0.9}])
def test_the_seed_decides(options):
    one, same, other = (seeded(8, seed=seed, **options) for seed in (0, 0, 1))
    for name in TENSORS:
        assert torch.equal(getattr(one, name), getattr(same, name))
    assert not torch.equal(one.images, other.images)


def test_classes_are_equally_likely_or_as_asked(generator):
    n = 3000
    labels = scenes(n, distractors=0, generator=generator).labels
    share = torch.bincount(labels, minlength=6) / n
    assert ((share - 1 / 6).abs() < 4 * math.sqrt(5 / 36 / n)).all()
    asked = torch.arange(60) % 6
    for cue in (False, True):
        found = scenes(60, labels=asked, cue=cue, generator=generator)
        assert torch.equal(found.labels, asked)
    assert (found.layers.kinds[:, 0] != found.layers.kinds[:, 1]).all()


def test_objects_differ_in_luminance_from_the_clutter_below():
    found = seeded(200)
    weights = torch.tensor([0.299, 0.587, 0.114])
    grey = (found.layers.clutter / 255).permute(0, 2, 3, 1) @ weights
    cover = found.layers.objects[:, 0] / 255
    below = (grey * cover).sum((1, 2)) / cover.sum((1, 2))
    gap = (found.layers.colours[:, 0] @ weights - below).abs()
    assert gap.median() > 0.4
    assert (gap > 0.15).float().mean() > 0.97  # colours that leave [0, 1] are clipped


def test_a_shape_covers_its_area():
    areas = {
        "disc": math.pi * 0.85**2,
        "square": 4 * 0.72**2,
        "triangle": 3 * math.sqrt(3) / 4,
        "cross": 4 * (2 * 0.92 * 0.3 - 0.3**2),
        "ring": math.pi * (0.9**2 - 0.5**2),
        "star": 5 * 0.45 * math.sin(math.pi / 5),
    }
    for k, name in enumerate(KINDS["shapes"]):
        cover = seeded(40, side=224, labels=torch.full((40,), k), distractors=0).layers.objects
        share = (cover[:, 0] / 255).sum((1, 2))
        # Of all radii from 0.2 to 0.29 sides, none of which shows in the ratio to the squared box.
        low, high = areas[name] * (0.2 * 224) ** 2, areas[name] * (0.29 * 224) ** 2
        assert 0.99 * low < share.min(), name
        assert share.max() < 1.01 * high, name


def test_clutter_is_a_contrast():
    full, half, none = (seeded(20, clutter=value).layers.clutter.float() for value in (1, 0.5, 0))
    spread = [x.std((2, 3)) for x in (full, half, none)]
    assert torch.allclose(spread[1], spread[0] / 2, atol=0.5)
    assert spread[2].max() == 0
    assert spread[0].mean() > 20


def test_distractors_are_as_many_as_asked():
    assert seeded(3, distractors=0).layers.junk.shape == (3, 0, 32, 32)
    assert not seeded(3, distractors=0).distractors.any()
    found = seeded(100, side=64, distractors=3)
    assert (found.layers.junk > 0).any((2, 3)).all()
    assert not (found.distractors & found.masks & (found.layers.objects[:, 0] == 255)).any()


def test_a_split_uses_its_own_digits_only():
    seen = {}
    for split in ("train", "validation", "test"):
        images, starts = bundled(split)
        own = getattr(digits(), split)
        assert len(images) == len(own) == int(starts[-1])
        for digit in range(10):
            part = images[starts[digit] : starts[digit + 1]]
            truth = own.images[own.labels == digit]
            assert torch.equal(part.unique(dim=0), truth.unique(dim=0))
        seen[split] = {tuple(image.flatten().tolist()) for image in images}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    a, b = seeded(6, "digits"), seeded(6, "digits", split="test")
    assert torch.equal(a.labels, b.labels)
    assert not torch.equal(a.layers.objects, b.layers.objects)
    assert torch.equal(seeded(6).images, seeded(6, split="test").images)


def test_some_of_the_scenes():
    found = seeded(10, cue=True, watermark=0.9)
    for index in (slice(2, 5), torch.tensor([2, 3, 4]), (torch.arange(10) % 5 > 1)):
        part = found[index]
        assert torch.equal(part.images, found.images[index])
        assert torch.equal(part.swapped().boxes, found.swapped().boxes[index])


def test_devices(device):
    found = scenes(4, cue=True, watermark=0.9, device=device)
    assert found.images.device.type == device.type
    assert found.swapped().to("cpu").images.device.type == "cpu"
    assert grid(2, device=device).masks.device.type == device.type


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n: expected an integer of at least 1"),
        ({"n": 2.5}, "n: expected an integer"),
        ({"side": 31}, "side: expected 32 to 224 pixels, got 31"),
        ({"side": 225}, "side: expected 32 to 224"),
        ({"side": 32.0}, "side: expected an integer"),
        ({"kind": "faces"}, "kind: expected one of shapes, digits"),
        ({"kind": None}, "kind: expected one of"),
        ({"split": "all"}, "split: expected one of train"),
        ({"clutter": 1.1}, r"clutter: expected a contrast in \[0, 1\]"),
        ({"clutter": math.nan}, "clutter: expected one non-negative number"),
        ({"distractors": -1}, "distractors: expected an integer of at least 0"),
        ({"watermark": 1.1}, "agree: expected a probability, got 1.1"),
        ({"watermark": -0.1}, "agree: expected one non-negative number"),
        ({"cue": "arrow"}, "cue: expected True, False, 'frame' or 'patch'"),
        ({"objects": 2}, "objects: expected None"),
        ({"objects": 5, "cue": True}, "objects: expected None, or 2 to 4"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"labels: expected integers of shape \(4,"),
        ({"labels": torch.zeros(4)}, "labels: expected integers"),
        ({"labels": torch.full((4,), 6)}, "labels: expected classes from 0 to 5"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        scenes(**({"n": 4} | options))


@pytest.mark.usefixtures("unchecked")
def test_bad_methods():
    found = seeded(4)
    with pytest.raises(ValueError, match="swapped: expected scenes with a cue"):
        found.swapped()
    with pytest.raises(ValueError, match="index: expected a slice"):
        found[3]
    with pytest.raises(ValueError, match="parts: expected some of object, distractors"):
        found.without("frame")
    with pytest.raises(ValueError, match="marks: expected classes from 0 to 5"):
        found.watermarked(torch.full((4,), -1))
    with pytest.raises(ValueError, match="marks: expected integers of shape"):
        found.watermarked(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="kind: expected one of"):
        grid(2, "faces")
    with pytest.raises(ValueError, match="n: expected"):
        grid(0)


def test_photographs_in_a_folder(tmp_path):
    for name, colour, size in (("cat", "red", (100, 60)), ("ant", "blue", (40, 90))):
        (tmp_path / name).mkdir()
        Image.new("RGB", size, colour).save(tmp_path / name / "one.png")
    Image.new("L", (64, 64), 128).save(tmp_path / "cat" / "two.JPG", "JPEG")
    (tmp_path / "cat" / "notes.txt").write_text("not a photograph")
    found = folder(tmp_path, 48)
    assert found.classes == ("ant", "cat")
    assert found.labels.tolist() == [0, 1, 1]
    assert found.images.shape == (3, 3, 48, 48)
    assert found.images.dtype == torch.float32
    assert found.images[:, :, 20, 20].round(decimals=1).tolist() == [
        [0, 0, 1],
        [1, 0, 0],
        pytest.approx([0.5] * 3),
    ]
    assert found.boxes is found.masks is found.layers is None
    assert len(found[1:]) == 2
    with pytest.raises(ValueError, match="without: expected scenes that were composed"):
        found.without("object")
    assert folder(tmp_path / "cat", 32).classes == ("cat",)


def test_the_middle_of_a_photograph_is_kept(tmp_path):
    picture = Image.new("RGB", (128, 64), "black")
    picture.paste("white", (48, 16, 80, 48))
    picture.save(tmp_path / "square.png")
    image = folder(tmp_path, 56).images[0]
    assert tight(image[0] > 0.5).tolist() == [12, 12, 44, 44]


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="path: expected a folder"):
        folder(tmp_path / "none")
    with pytest.raises(ValueError, match="path: expected photographs in the folder"):
        folder(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"expected photographs that can be read, got .*broken"):
        folder(tmp_path)
