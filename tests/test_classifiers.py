import sys
import types

import pytest
import torch
from torch import nn

import lib.classifiers
from lib.classifiers import CACHE, IMAGENET, Normalise, SmallResNet, SmallVGG, trained
from lib.data.scenes import scenes

FEW, LABELS = torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])
QUICK = {"steps": 2, "batch": 4, "network": {"width": 2}, "distractors": 0}


@pytest.fixture(params=[SmallVGG, SmallResNet])
def net(request):
    torch.manual_seed(0)
    return request.param(6, width=4)


@pytest.fixture
def counted(monkeypatch):
    """How often something was trained."""
    calls = []
    inner = lib.classifiers.fit

    def fit(*args, **options):
        calls.append(options)
        return inner(*args, **options)

    monkeypatch.setattr(lib.classifiers, "fit", fit)
    return calls


def same(a, b):
    """Whether two networks have the same weights and buffers, bit for bit."""
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(k == m and torch.equal(v, w) for (k, v), (m, w) in pairs)


@pytest.mark.parametrize("side", [32, 45, 64, 224])
def test_images_of_any_side_fit(net, side, generator):
    net.eval()
    images = torch.rand(2, 3, side, side, generator=generator)
    assert net(images).shape == (2, 6)
    assert net(images).isfinite().all()
    assert torch.allclose(net(images)[:1], net(images[:1]), atol=1e-5)


def test_layers_have_names_and_hand_on_what_they_should(net, generator):
    net.eval()
    images = torch.rand(2, 3, 32, 32, generator=generator)
    found = net.representations(images)
    assert list(found) == list(net.layers)
    assert next(iter(found)) == "normalise"
    assert torch.equal(found["logits"], net(images))
    x = images
    for name in found:
        x = net.get_submodule(f"layers.{name}")(x)
        assert torch.equal(x, found[name]), name


def test_shapes_of_the_layers(generator):
    images = torch.rand(2, 3, 64, 64, generator=generator)
    vgg = SmallVGG(6, width=4, hidden=5).representations(images)
    assert {k: tuple(v.shape[1:]) for k, v in vgg.items() if k.startswith(("conv", "fc"))} == {
        "conv1": (4, 64, 64),
        "conv2": (8, 32, 32),
        "conv3": (16, 16, 16),
        "conv4": (16, 8, 8),
        "fc5": (5,),
    }
    assert vgg["flatten"].shape == (2, 256)
    resnet = SmallResNet(6, width=4).representations(images)
    assert [tuple(v.shape[1:]) for k, v in resnet.items() if k.startswith("block")] == [
        (8, 32, 32),
        (16, 16, 16),
        (32, 8, 8),
    ]
    assert torch.allclose(resnet["pool"], resnet["block3"].mean((2, 3)), atol=1e-6)


def test_a_residual_block_adds_what_it_skips(net, generator):
    block = lib.classifiers.Residual(5, 5).eval()
    x = torch.randn(2, 5, 6, 6, generator=generator)
    for weight in block.body.parameters():
        nn.init.zeros_(weight)
    assert torch.equal(block(x), x.relu())
    assert lib.classifiers.Residual(5, 7, 2)(x).shape == (2, 7, 3, 3)


def test_images_are_normalised_inside(generator):
    part = Normalise(*IMAGENET)
    x = torch.rand(2, 3, 4, 5, generator=generator)
    mean, std = (torch.tensor(v)[:, None, None] for v in IMAGENET)
    assert torch.equal(part(x), (x - mean) / std)
    assert not list(part.parameters())
    assert part.double()(x.double()).dtype == torch.float64


def test_fit_learns_and_ends_in_eval_mode(net):
    batch = scenes(64, distractors=0, clutter=0, generator=torch.Generator().manual_seed(0))
    before = net.accuracy(batch.images, batch.labels)
    history = net.fit(batch, steps=60, seed=0, devices="cpu")
    assert history.steps == 60
    assert not any(part.training for part in net.modules())
    assert net.accuracy(batch.images, batch.labels) > max(0.6, before + 0.2)
    # Statistics were collected, and do not move any more.
    state = {k: v.clone() for k, v in net.state_dict().items()}
    assert any(v.abs().max() > 0 for k, v in state.items() if k.endswith("running_mean"))
    net(batch.images)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(w.is_contiguous() for w in net.parameters())


def test_fit_takes_tensors_scenes_and_callables(net):
    batch = scenes(8, generator=torch.Generator().manual_seed(0))
    start = {k: v.clone() for k, v in net.state_dict().items()}
    ends = []
    for data in (batch, (batch.images, batch.labels), lambda g: batch, lambda g: batch[:8]):
        net.load_state_dict(start)
        net.fit(data, steps=2, batch_size=None, devices="cpu")
        ends.append(net(batch.images))
    assert all(torch.allclose(ends[0], end, atol=1e-4) for end in ends)
    assert net.fit(batch, steps=1, lr=1e-4, schedule=None, devices="cpu").steps == 1
    assert net.fit(batch, steps=0, devices="cpu").steps == 0


def test_accuracy_counts():
    net = SmallVGG(3, width=2).eval()
    nn.init.zeros_(net.layers["logits"].weight)
    net.layers["logits"].bias.data = torch.tensor([0.0, 1.0, 0.0])
    labels = torch.tensor([1, 1, 0, 2, 1]).repeat(100)
    assert net.accuracy(torch.zeros(500, 3, 32, 32), labels) == pytest.approx(0.6)


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_the_second_call_reads_what_the_first_has_trained(name, tmp_path, counted):
    first = trained(name, folder=tmp_path, **QUICK)
    second = trained(name, folder=tmp_path, **QUICK)
    assert len(counted) == 1
    assert same(first, second)
    assert not first.training
    assert not second.training
    assert [p.suffix for p in tmp_path.iterdir()] == [".pt"]


def test_what_the_weights_depend_on_is_in_the_key(tmp_path, counted, monkeypatch):
    trained("vgg", folder=tmp_path, **QUICK)
    others = [
        {"seed": 1},
        {"steps": 3},
        {"batch": 5},
        {"network": {"width": 3}},
        {"watermark": 0.9},
        {"clutter": 0.5},
    ]
    for k, other in enumerate(others):
        trained("vgg", folder=tmp_path, **(QUICK | other))
        assert len(counted) == k + 2, other
    monkeypatch.setattr(torch, "__version__", "0.0")
    trained("vgg", folder=tmp_path, **QUICK)
    assert len(counted) == len(others) + 2


def test_the_key_follows_the_source_of_the_data(tmp_path, monkeypatch):
    before = lib.classifiers._key([1])
    assert lib.classifiers._key([1]) == before != lib.classifiers._key([2])
    (tmp_path / "other.py").write_text("# another way to draw")
    monkeypatch.setattr(lib.data.digits, "__file__", str(tmp_path / "other.py"))
    assert lib.classifiers._key([1]) != before


def test_the_seed_decides_and_the_global_state_is_left_alone(tmp_path):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one = trained("vgg", folder=tmp_path / "a", **QUICK)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(6)
    two = trained("vgg", folder=tmp_path / "b", **QUICK)
    assert same(one, two)


@pytest.mark.parametrize("damage", [b"", b"not weights", None])
def test_a_damaged_file_is_made_anew(damage, tmp_path, counted):
    first = trained("vgg", folder=tmp_path, **QUICK)
    (file,) = tmp_path.iterdir()
    if damage is None:  # half of it
        damage = file.read_bytes()[: file.stat().st_size // 2]
    file.write_bytes(damage)
    second = trained("vgg", folder=tmp_path, **QUICK)
    assert len(counted) == 2
    assert same(first, second)
    trained("vgg", folder=tmp_path, **QUICK)
    assert len(counted) == 2


def test_a_file_of_other_weights_is_made_anew(tmp_path, counted):
    first = trained("vgg", folder=tmp_path, **QUICK)
    (file,) = tmp_path.iterdir()
    others = [{"weight": torch.zeros(3)}, [1, 2], first.state_dict()]
    others[2] = {name: value + 1 for name, value in others[2].items()}
    others[2]["layers.logits.bias"] = torch.zeros(7)  # the last to be read: the rest would fit
    for k, other in enumerate(others):
        torch.save(other, file)
        assert same(first, trained("vgg", folder=tmp_path, **QUICK))
        assert len(counted) == k + 2


def test_nothing_is_left_of_a_write_that_fails(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(lib.classifiers.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        trained("vgg", folder=tmp_path, **QUICK)
    assert not list(tmp_path.iterdir())


def test_the_folder_of_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path / "chosen"))
    trained("vgg", **QUICK)
    assert len(list((tmp_path / "chosen").iterdir())) == 1
    # A package without a repository around it writes to the cache folder of the user.
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(lib.classifiers, "ROOT", tmp_path / "nowhere")
    trained("vgg", **QUICK)
    assert len(list((tmp_path / "cache" / "seeing-through-models").iterdir())) == 1


@pytest.fixture
def torchvision(monkeypatch):
    """A stub in the place of torchvision, which remembers what it was asked for."""
    asked = {}

    def make(name):
        def model(**options):
            asked[name] = options
            return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.LazyLinear(10))

        return model

    stub, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    models.vgg16, models.resnet50 = make("vgg16"), make("resnet50")
    stub.models = models
    monkeypatch.setitem(sys.modules, "torchvision", stub)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return asked


@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_large_networks_take_images_as_they_are(name, torchvision, generator):
    net = getattr(lib.classifiers, name)()
    assert torchvision == {name: {"weights": "IMAGENET1K_V1"}}
    assert not any(part.training for part in net.modules())
    x = torch.rand(2, 3, 8, 8, generator=generator)
    mean, std = (torch.tensor(v)[:, None, None] for v in IMAGENET)
    assert torch.equal(net(x), net.network((x - mean) / std))
    getattr(lib.classifiers, name)(weights=None)
    assert torchvision[name] == {"weights": None}


@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_without_torchvision_it_is_said_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=rf"{name} comes from torchvision.*Install the build"):
        getattr(lib.classifiers, name)()


def test_a_torchvision_for_another_torch_is_said_to_be_one(monkeypatch):
    class Broken(types.ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "torchvision", Broken("torchvision"))
    with pytest.raises(ImportError, match="torchvision::nms does not exist"):
        lib.classifiers.resnet50()


def test_devices(device, net):
    net.to(device)
    batch = scenes(8, device=device)
    net.fit(batch, steps=1, devices=device)
    assert net(batch.images).device.type == device.type


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmallVGG(1), "classes: expected an integer of at least 2"),
        (lambda: SmallVGG(3, hidden=0), "hidden: expected an integer of at least 1"),
        (lambda: SmallResNet(3, width=0), "width: expected an integer of at least 1"),
        (lambda: SmallResNet(1.5), "classes: expected an integer"),
        (lambda: Normalise((0.5,), (0.0,)), "std: expected 1 positive numbers"),
        (lambda: Normalise((0.5,), (1.0, 1.0)), "std: expected 1 positive numbers"),
        (lambda: SmallVGG(3, width=2).fit(None, steps=1), "data: expected images with labels"),
        (lambda: SmallVGG(3, width=2).fit(torch.zeros(3), steps=1), "data: expected images"),
        (lambda: SmallVGG(3, width=2).fit((FEW, LABELS), steps=-1), "steps: expected an integer"),
        (lambda: trained("alexnet"), "name: expected one of vgg, resnet"),
        (lambda: trained("vgg", kind="faces"), "kind: expected one of shapes"),
        (lambda: trained("vgg", steps=0), "steps: expected an integer of at least 1"),
        (lambda: trained("vgg", seed=-1), "seed: expected an integer of at least 0"),
        (lambda: trained("vgg", n=5), r"settings: expected options of scenes .*\['n'\]"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("unchecked")
def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder: expected a folder that can be written"):
        trained("vgg", folder=tmp_path / "file" / "below", **QUICK)
