"""The U-Net: a shape, a start at zero, noise levels and labels, refusals."""

import pytest
import torch

from lib.diffusion import NetworkDenoiser
from lib.diffusion.schedules import edm
from lib.diffusion.unet import UNet
from lib.training import fit

SMALL = {"widths": (4, 8), "classes": 3, "embedding": 8}


def wake(net, generator):
    """Random numbers where a new network has zeros, so that all that it reads can be seen."""
    with torch.no_grad():
        for weight in net.parameters():
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            weight.add_(noise, alpha=0.3)
    return net


@pytest.mark.parametrize(
    ("channels", "widths", "blocks", "size"),
    [(1, (4, 8), 1, (8, 8)), (3, (4, 6, 8), 2, (4, 8)), (2, (5,), 1, (3, 7))],
)
def test_output_has_shape_dtype_and_device_of_the_input(
    channels, widths, blocks, size, dtype, device
):
    net = UNet(channels, widths, blocks=blocks, embedding=8)
    net = net.to(device, dtype)
    y = torch.ones(2, channels, *size, device=device, dtype=dtype)
    out = net(y, torch.zeros(1, device=device, dtype=dtype))
    assert (out.shape, out.dtype, out.device) == (y.shape, y.dtype, y.device)
    assert not out.any()  # a new network says zero


def test_every_parameter_learns(generator):
    net = wake(UNet(2, **SMALL), generator)
    y, label = torch.randn(4, 2, 8, 8, generator=generator), torch.tensor([0, 1, 2, -1])
    net(y, torch.linspace(-1, 1, 4), label).square().mean().backward()
    assert all(bool(weight.grad.any()) for weight in net.parameters())


def test_one_noise_level_stands_for_all(generator):
    net = wake(UNet(1, **SMALL), generator).double()
    y, label = torch.randn(5, 1, 8, 8, generator=generator).double(), torch.arange(5) - 2
    level, label = torch.tensor([0.3]).double(), label.clamp(min=-1)
    torch.testing.assert_close(net(y, level, label), net(y, level.repeat(5), label))


def test_noise_level_and_class_change_the_output(generator):
    net = wake(UNet(1, **SMALL), generator)
    y = torch.randn(1, 1, 8, 8, generator=generator).expand(4, 1, 8, 8)
    label = torch.arange(-1, 3)
    levels = net(y, torch.linspace(-1, 1, 4), label[:1].expand(4))
    classes = net(y, torch.zeros(1), label)
    for out in (levels, classes):
        assert float(torch.pdist(out.detach().flatten(1)).min()) > 1e-3


def test_no_label_is_minus_one(generator):
    net = wake(UNet(1, **SMALL), generator)
    y, c_noise = torch.randn(3, 1, 8, 8, generator=generator), torch.zeros(1)
    torch.testing.assert_close(net(y, c_noise), net(y, c_noise, torch.full((3,), -1)))


def test_rows_do_not_mix(generator):
    net = wake(UNet(1, **SMALL), generator).double()
    y, label = torch.randn(3, 1, 8, 8, generator=generator).double(), torch.arange(3)
    level = torch.linspace(-1, 1, 3).double()
    alone = [net(y[i : i + 1], level[i : i + 1], label[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(net(y, level, label), torch.cat(alone))


def test_it_learns_an_image_for_each_class(generator):
    """Of data that are one image per class, the denoiser learns the image, at any noise."""
    images = torch.stack([torch.eye(8), torch.eye(8).flip(0)])[:, None]
    torch.manual_seed(0)
    net = UNet(1, (4, 8), classes=2, embedding=16)
    model = NetworkDenoiser(net, edm(100, 0.05, 5.0), (1, 8, 8), sd=0.3)

    def loss(model, batch, generator):
        label = torch.arange(16) % 2
        t = torch.rand(16, generator=generator).clamp(min=0.01)
        return model.loss(images[label], t, generator, label=label)

    history = fit(model, loss, steps=150, lr=1e-2, schedule="cosine", devices="cpu")
    assert history.losses[0] > 0.2
    noise = torch.randn(2, 1, 8, 8, generator=generator)
    with torch.no_grad():
        found = model.posterior(noise, model._rows(noise, 1.0), torch.arange(2)).mean
    assert float((found - images).square().mean()) < 0.1 * float(images.var())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: UNet(0), "channels: expected an integer of at least 1"),
        (lambda: UNet(1, ()), "widths: expected at least one width"),
        (lambda: UNet(1, (8, 0)), "widths: expected an integer of at least 1"),
        (lambda: UNet(1, 8), "widths: expected a sequence of integers"),
        (lambda: UNet(1, blocks=0), "blocks: expected an integer of at least 1"),
        (lambda: UNet(1, classes=-1), "classes: expected an integer of at least 0"),
        (lambda: UNet(1, embedding=0), "embedding: expected an integer of at least 1"),
        (lambda: ask((2, 1, 7, 8)), "y: expected height and width that 2 divides"),
        (lambda: ask((2, 1, 8, 7)), "y: expected height and width that 2 divides"),
        (lambda: ask((2, 3, 8, 8)), "y: expected images of 1 channels"),
        (lambda: ask((1, 8, 8)), "y: expected images of 1 channels"),
        (lambda: ask((2, 1, 8, 8), levels=3), "c_noise: expected one level or 2"),
        (lambda: ask((2, 1, 8, 8), [0, 3]), "label: expected -1..2, got 0 to 3"),
        (lambda: ask((2, 1, 8, 8), [-2, 0]), "label: expected -1..2, got -2 to 0"),
        (lambda: ask((2, 1, 8, 8), [0]), "label: expected 2 integers"),
        (lambda: ask((2, 1, 8, 8), [0, 1], classes=0), "label: expected None"),
    ],
)
def test_refusals(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()


def ask(shape, label=None, *, levels=1, classes=3):
    """Call a small network with one thing wrong."""
    net = UNet(1, (4, 8), classes=classes, embedding=8)
    return net(
        torch.zeros(shape), torch.zeros(levels), label if label is None else torch.tensor(label)
    )
