"""What people have, handed over as they have it: every kind is answered, or refused with the mend."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lrc import InputError
from lrc.inspection import load
from lrc.models import resnet8

SOURCE = """
from torch import nn

def small(num_classes=10, width=8):
    features = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*features, nn.Linear(width, num_classes))

class Given(nn.Module):
    def __init__(self, kind="tuple"):
        super().__init__()
        self.net, self.kind = small(), kind
    def forward(self, x):
        z = self.net(x)
        return {"tuple": (z, x), "dict": {"logits": z, "features": x}, "map": z[:, :, None, None],
                "one": z[:, :1], "softmax": z.softmax(1), "unnamed": {"a": z, "b": x}, "vector": z[:, 0]}[self.kind]

def ends_in_softmax():
    return nn.Sequential(small(), nn.Softmax(1))

def parallel():
    return nn.DataParallel(small())

def doubled():
    return small().double()

def halved():
    return small().half()

def number():
    return 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(classes=10, width=8):
    net = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )
    return net.eval(), net.state_dict()


X = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("place", [None, "state_dict", "model", "net", "model_state_dict", "ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
def test_weights_are_found_wherever_people_keep_them(folder, place, prefix):
    net, state = weights()
    state = {prefix + k: v for k, v in state.items()}
    beside = {"epoch": 3, "best_acc1": torch.tensor(71.0), "optimizer": {"state": {}}}
    torch.save(state if place is None else beside | {place: state}, folder / "w.pth")
    found = load("mine.py:small", weights="w.pth")
    assert torch.equal(found.model(X), net(X))
    assert any("prefix" in note for note in found.notes) == bool(prefix)


def test_safetensors_and_the_number_of_classes_come_from_the_file(folder):
    net, state = weights(classes=7)
    save_file(state, folder / "w.safetensors")
    found = load("mine.py:small", weights="w.safetensors")
    assert torch.equal(found.model(X), net(X)) and "it is built for 7 classes, as its weights are" in found.notes


def test_arguments_go_to_the_function(folder):
    net, state = weights(width=4)
    torch.save(state, folder / "w.pt")
    assert torch.equal(load("mine.py:small", weights="w.pt", arguments={"width": 4}).model(X), net(X))


class Trap:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize(
    "content, says",
    [
        (lambda: {"state_dict": weights()[1], "args": Trap()}, "could run code"),
        (lambda: weights()[0], "could run code"),
        (lambda: {"epoch": 3}, "has no weights: there are epoch"),
        (lambda: [1, 2], "holds a list"),
        (lambda: weights(width=4)[1], "0.weight is (4, 3, 3, 3), the network's (8, 3, 3, 3)"),
        (lambda: weights()[1] | {"0.bias": torch.full((8,), torch.nan)}, "are NaN, 8 of 8 in 0.bias"),
        (lambda: {"0.weight": torch.zeros(8, 3, 3, 3)}, "missing 0.bias (8,) (and 2 more)"),
        (lambda: weights()[1] | {"other": torch.zeros(2)}, "unexpected other (2,)"),
        (lambda: resnet8(width=8).state_dict(), "they would fit resnet8"),
    ],
)
def test_what_does_not_fit_is_said_with_names_and_shapes(folder, capsys, content, says):
    torch.save(content(), folder / "w.pth")
    with pytest.raises(InputError) as error:
        load("mine.py:small", weights="w.pth")
    assert says in str(error.value) and "w.pth" in str(error.value) and "\n" not in str(error.value)
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("spoil", [lambda b: b[:100], lambda b: b"", lambda b: b"\0" * len(b)])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_files_are_one_line(folder, name, spoil):
    state = weights()[1]
    save_file(state, folder / name) if name.endswith("rs") else torch.save(state, folder / name)
    (folder / name).write_bytes(spoil((folder / name).read_bytes()))
    with pytest.raises(InputError, match=name):
        load("mine.py:small", weights=name)


@pytest.mark.parametrize("kind", ["tuple", "dict", "map"])
def test_logits_are_taken_out_of_what_a_network_gives(folder, kind):
    torch.manual_seed(0)
    found = load("mine.py:Given", arguments={"kind": kind})
    assert torch.equal(found.model(X), found.model.model.net(X))


def test_one_logit_becomes_two(folder):
    found = load("mine.py:Given", arguments={"kind": "one"})
    z = found.model.model(X)
    assert torch.allclose(found.model(X).softmax(1)[:, 1:], z.sigmoid())


def test_a_last_softmax_is_taken_off_and_said(folder):
    found = load("mine.py:ends_in_softmax")
    assert (found.model(X) < 0).any() and any("softmax" in note for note in found.notes)


@pytest.mark.parametrize(
    "spec, options, says",
    [
        ("mine.py:Given", {"arguments": {"kind": "softmax"}}, "gives probabilities: leave out its softmax"),
        ("mine.py:Given", {"arguments": {"kind": "unnamed"}}, "which are the logits is not clear"),
        ("mine.py:Given", {"arguments": {"kind": "vector"}}, "expected logits (n, classes)"),
        ("mine.py:number", {}, "gave a int, not a torch.nn.Module"),
        ("mine.py:smal", {}, "the nearest: small"),
        ("mine.py:small", {"arguments": {"wide": 3}}, "cannot build mine.py:small: TypeError"),
        ("mine.py:small", {"shape": (1, 32, 32)}, "does not take images of 1x32x32"),
        ("mine.py:small", {"mean": [0.5]}, "go together"),
        ("nothing.py:small", {}, "there is no file nothing.py"),
        ("mine.py", {}, "add :FUNCTION"),
        ("cifar10-small-att", {}, "cifar10-small-at"),
        ("torchvision:resnet19", {}, "resnet18"),
    ],
)
def test_what_cannot_be_names_the_mend(folder, spec, options, says):
    with pytest.raises(InputError) as error:
        load(spec, **options)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["parallel", "doubled", "halved"])
def test_containers_and_types_are_taken_off_and_said(folder, name):
    found = load(f"mine.py:{name}")
    assert found.model(X).dtype == torch.float32 and len(found.notes) == 2


def test_normalization_is_put_inside(folder):
    net, state = weights()
    torch.save(state, folder / "w.pth")
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    found = load("mine.py:small", weights="w.pth", mean=mean, std=std)
    inside = (X - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(found.model(X), net(inside), atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_file_is_a_network(folder):
    net, _ = weights()
    torch.jit.script(net).save(str(folder / "net.pt"))
    assert torch.allclose(load("net.pt").model(X), net(X), atol=1e-6)


def test_a_transformer_is_built_for_the_side_that_its_weights_are_for(folder, monkeypatch):
    from torchvision import models

    small = lambda num_classes=10, image_size=224: models.VisionTransformer(  # noqa: E731
        image_size, 8, 1, 2, 16, 32, num_classes=num_classes
    )
    monkeypatch.setattr(models, "get_model", lambda name, weights, **options: small(**options))
    net = small(7, 32).eval()
    nn.init.normal_(net.heads[-1].weight)  # which are 0 at first
    torch.save(net.state_dict(), folder / "w.pth")
    found = load("torchvision:vit_b_16", weights="w.pth", shape=(3, 32, 32), classes=7)
    assert torch.equal(found.model(X), net(X)) and any("side 32" in note for note in found.notes)
    with pytest.raises(InputError, match=r"pos_embedding is \(1, 17, 16\), the network's \(1, 785, 16\)"):
        load("torchvision:vit_b_16", weights="w.pth", shape=(3, 64, 64), classes=7)


def test_what_was_exported_for_one_image_is_asked_image_by_image(folder):
    net, _ = weights()
    torch.export.save(torch.export.export(net, (X[:1],)), folder / "one.pt2")
    found = load("one.pt2")
    assert torch.allclose(found.model(X), net(X), atol=1e-6) and any("one image at a time" in n for n in found.notes)


def test_torchvision_takes_its_number_of_classes_from_the_weights(folder):
    from torchvision.models import squeezenet1_1

    net = squeezenet1_1(num_classes=12).eval()
    torch.save({"state_dict": net.state_dict()}, folder / "w.pth")
    found = load("torchvision:squeezenet1_1", weights="w.pth", shape=(3, 64, 64))
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(found.model(x), net(x))


def test_a_folder_of_configuration_that_is_none(folder):
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="config.json"):
        load("empty")
    (folder / "empty" / "config.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="empty"):
        load("empty")


def test_an_argument_of_ones_own_goes_before_the_number_of_classes_of_the_data():
    found = load("torchvision:squeezenet1_1", arguments={"num_classes": 12}, classes=10, shape=(3, 64, 64))
    assert found.model(torch.zeros(1, 3, 64, 64)).shape == (1, 12)
