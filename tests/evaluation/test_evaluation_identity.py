"""What tells networks, attacks and images apart: every difference that counts, and none that does not."""

import copy
import json
import os
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from attacking import Linear
from PIL import Image
from torch import Generator, nn

from lrc.attacks import autoattack, fgsm, mifgsm, pgd, square
from lrc.attacks.losses import margin
from lrc.data import Images, folder
from lrc.models.layers import JPEG
from lrc.utils.errors import InputError
from lrc.utils.files import replacing, write_text
from lrc.utils.hashes import described, digest, fingerprint, probe_answers, same_answers

SHAPE = (3, 6, 6)


class Noisy(nn.Module):
    """A network with all that a `state_dict` leaves out."""

    def __init__(self, sigma=0.1, act=torch.relu, mean=0.5, table=1.0, at=(0, 1)):
        super().__init__()
        self.network, self.sigma, self.act, self.at = Linear(3, SHAPE), sigma, act, at
        self.mean = torch.tensor(mean)
        self.register_buffer("table", torch.tensor(table), persistent=False)
        self.parent = (self,)  # a way to hide a module from PyTorch

    def forward(self, x):
        return self.network(self.act(x - self.mean) * self.table)


def test_the_same_network_has_the_same_fingerprint():
    one = fingerprint(Noisy())
    assert one == fingerprint(Noisy().train()) == fingerprint(Noisy().eval().requires_grad_(False)) and len(one) == 64
    conv = nn.Conv2d(3, 4, 3)
    assert fingerprint(conv) == fingerprint(conv.to(memory_format=torch.channels_last))


@pytest.mark.parametrize(
    "other",
    [dict(sigma=0.2), dict(act=torch.tanh), dict(mean=0.4), dict(table=2.0), dict(at=(1, 0))],
    ids=lambda other: next(iter(other)),
)
def test_what_a_state_dict_leaves_out_counts(other):
    assert fingerprint(Noisy(**other)) != fingerprint(Noisy())
    assert other.keys() == {"table"} or Noisy(**other).state_dict().keys() == Noisy().state_dict().keys()


def test_layers_without_weights_count():
    layers = [JPEG(quality=50), JPEG(quality=80), nn.ReLU(), nn.Tanh(), nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)]
    assert len({fingerprint(nn.Sequential(layer, Linear(3, SHAPE))) for layer in layers}) == len(layers)
    jpegs = [JPEG(quality=50), JPEG(quality=50)]
    jpegs[1].tables[0, 0, 0] += 1  # what is printed is the same
    assert fingerprint(jpegs[0]) != fingerprint(jpegs[1])


class Weights:
    """No module, no tensor: what it holds can be seen in the answers alone."""

    def __init__(self, w):
        self.w = w


def quantized(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch means to drop these types
        return torch.ao.quantization.quantize_dynamic(network, {nn.Linear})


def enclosing(w):
    return Noisy(act=lambda x: x * w)


def calling(network):
    return lambda x, by=network: by(x)


def holding(what):
    network = Linear(3, SHAPE)
    network.kept = what
    return network


HIDDEN = {
    "a list of networks": lambda seed: holding([Linear(3, SHAPE, seed=seed)]),
    "networks by name": lambda seed: holding({"a": [Linear(3, SHAPE, seed=seed)]}),
    "a list of tensors": lambda seed: holding([torch.tensor(seed)]),
    "numbers by name": lambda seed: holding({"sigma": seed}),
    "an array": lambda seed: holding(np.full(3, seed)),
    "a set": lambda seed: holding({1, seed}),
    "under a private name": lambda seed: (network := Linear(3, SHAPE)).__setattr__("_kept", seed) or network,
    "a number enclosed": enclosing,
    "a tensor enclosed": lambda seed: enclosing(torch.tensor(seed)),
    "a network by default": lambda seed: holding([calling(Linear(3, SHAPE, seed=seed))]),
    "an option of a function": lambda seed: Noisy(act=partial(torch.mul, other=seed)),
    "packed weights": quantized,
    "a method of another network": lambda seed: holding(Linear(3, SHAPE, seed=seed).forward),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_state_that_pytorch_knows_nothing_of_counts(name):
    made = [HIDDEN[name](seed) for seed in (1, 1, 2)]
    first, again, other = map(fingerprint, made)
    assert first == again != other
    assert fingerprint(copy.deepcopy(made[0])) == first


def test_shared_networks_and_equal_constants_are_told_apart_by_what_they_do():
    """One network in two places is not two that are equal for now; whether two equal tuples are one is no matter."""
    layer, twin = nn.Linear(3, 3), nn.Linear(3, 3)
    twin.load_state_dict(layer.state_dict())
    assert fingerprint(nn.Sequential(layer, layer)) != fingerprint(nn.Sequential(layer, twin))
    one = (1, 2)
    assert fingerprint(holding([one, one])) == fingerprint(holding([(1, 2), tuple([1, 2])]))


class Secret(nn.Module):
    """Weights where no one looks; the answers are all there is to go by."""

    def __init__(self, seed):
        super().__init__()
        self.weights = Weights(torch.randn(3, 108, generator=Generator().manual_seed(seed)))

    def forward(self, x):
        return x.flatten(1) @ self.weights.w.T.to(x.dtype)


def test_answers_tell_apart_what_nothing_else_does():
    first, again, other = Secret(1), Secret(1), Secret(2)
    assert fingerprint(first) == fingerprint(other)
    answers = [probe_answers(network, SHAPE) for network in (first, again, other)]
    assert same_answers(answers[0], answers[1]) and not same_answers(answers[0], answers[2])
    assert answers[0] == json.loads(json.dumps(answers[0])) and len(answers[0]) % 3 == 0
    slightly = [a * (1 + 1e-5) for a in answers[0]]  # another device
    assert same_answers(answers[0], slightly) and not same_answers(answers[0], [a * 1.05 for a in answers[0]])
    assert same_answers([torch.nan, torch.inf], [torch.nan, torch.inf])
    assert not same_answers([torch.nan, 1.0], [0.0, 1.0]) and not same_answers([], answers[0])


def test_random_answers_are_none_and_cost_no_random_number():
    state = torch.get_rng_state()
    assert probe_answers(nn.Sequential(nn.Dropout(), nn.Flatten()), SHAPE) is None
    assert torch.equal(torch.get_rng_state(), state) and same_answers(None, None)
    assert not same_answers(None, [0.0])


def own(by, model, x, y, *, eps=0.1):
    return x


def test_attacks_are_described_by_their_options():
    surrogate = Linear(3, SHAPE)
    parts = {"fgsm": fgsm, "square": partial(square, queries=20)}
    assert described(partial(mifgsm, steps=3, generator=Generator())) == "mifgsm(steps=3)"
    assert (
        described(partial(autoattack, version=parts)) == "autoattack(version={fgsm: fgsm, square: square(queries=20)})"
    )
    assert described(partial(pgd, surrogate)) == described(partial(pgd, Linear(3, SHAPE)))
    assert described(partial(pgd, surrogate)) != described(partial(pgd, Linear(3, SHAPE, seed=1)))
    assert described(partial(pgd, loss=margin)) == "pgd(loss=margin)"
    assert described(partial(own, 1)) == "own(1)" != described(partial(own, 2))
    assert described(partial(own, torch.zeros(2))) != described(partial(own, torch.ones(2)))
    assert described(surrogate.forward) == f"{described(surrogate)}.forward"
    assert described([partial(own, 1), (margin, 0.5)]) == "[own(1), [margin, 0.5]]" and described(None) == "None"


class Thing:
    def __call__(self):
        return 0


@pytest.mark.parametrize("value", [Thing(), lambda x: x, partial(pgd, loss=lambda z, y: z), {"a": Thing()}, object()])
def test_no_address_is_part_of_a_description(value):
    assert "0x" not in described(value)


def test_another_process_says_the_same():
    """With another seed of hashes, and other addresses."""
    code = "from test_evaluation_identity import *\nprint(described(partial(own, Noisy(), loss=margin, x=Thing())))"
    here = os.path.dirname(__file__)
    places = [here, os.path.dirname(here), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "PYTHONHASHSEED": "7"}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    mine = described(partial(own, Noisy(), loss=margin, x=Thing()))
    assert said.stdout.strip().replace("test_evaluation_identity", Thing.__module__) == mine


def test_a_digest_is_of_the_values_not_of_their_places():
    x = torch.arange(24).reshape(2, 3, 4)
    assert digest([x]) == digest([x.permute(2, 0, 1).contiguous().permute(1, 2, 0)]) != digest([x + 1])
    assert digest([torch.zeros(0)]) == digest([])


def test_images_are_told_apart_by_bytes_and_labels():
    x, y = torch.arange(96).to(torch.uint8).reshape(2, 3, 4, 4), torch.tensor([0, 1])
    one = Images(x, y, ("a", "b")).digest()
    assert one == Images(x.to(memory_format=torch.channels_last), y, ("a", "b")).digest()
    others = Images(x + 1, y, ("a", "b")), Images(x, y.flip(0), ("a", "b"))
    assert len({one, *(other.digest() for other in others)}) == 3


@pytest.fixture
def pictures(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_images_in_files_are_told_apart_by_what_the_files_hold(pictures):
    data = folder(pictures, size=6, workers=0)
    one = data.digest()
    assert folder(pictures, size=6, workers=0).digest() == one == data.subset(range(6)).digest()
    assert (
        len({one, folder(pictures, size=5).digest(), data.subset(5).digest(), data.subset([1, 0, 2, 3, 4, 5]).digest()})
        == 4
    )
    path = pictures / "cat" / "0.png"
    os.utime(path, (1, 1))
    assert data.digest() == one
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, (1, 1))
    assert data.digest() != one  # of one name, size and date
    assert data.subset([1, 2]).digest() == folder(pictures, size=6).subset([1, 2]).digest()
    (pictures / "cat" / "0.png").unlink()
    with pytest.raises(InputError, match=r"0\.png cannot be read"):
        data.digest()


def test_a_file_is_never_half_there(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_text(path, "ä")
    assert path.read_text(encoding="utf-8") == "ä"
    with pytest.raises(ZeroDivisionError), replacing(path) as unfinished:
        unfinished.write_text("half")
        raise ZeroDivisionError
    assert path.read_text(encoding="utf-8") == "ä" and list(path.parent.iterdir()) == [path]
