"""Maps to a file, in chunks, with a bar; local maps, alignment, superposition: brute force and closed forms."""

import copy
import math
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils import prune

import lrc
from lrc.linearization import (
    affine_map,
    alignment,
    jacobian,
    linear_map,
    local_map,
    maps,
    mean_local_map,
    superposition_error,
)

SHAPE = (3, 8, 8)


def network(seed: int = 0, classes: int = 5) -> nn.Module:
    """Convolutions, batch norm with statistics, max pooling and a shortcut, in float64."""
    g = Generator().manual_seed(seed)
    model = lrc.models.resnet8(classes=classes, width=4, generator=g)
    model = nn.Sequential(model, nn.Linear(classes, classes)).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=g)
            module.running_var.uniform_(0.5, 1.5, generator=g)
    return model.eval()


def linear_network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Without a gate: convolution, batch norm in eval mode, average pooling."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 5)
    )
    model[1].running_var.uniform_(0.5, 1.5, generator=Generator().manual_seed(0))
    return model.to(dtype).eval()


def images(n: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.rand((n, *(shape or SHAPE)), generator=Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(model: nn.Module, x: Tensor) -> Tensor:
    """The Jacobians, one image and one call after the other."""
    return torch.stack([torch.autograd.functional.jacobian(model, image[None])[0, :, 0] for image in x])


# --- W on the disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_file_holds_what_memory_would(dtype, tmp_path):
    model = network(classes=7).to(dtype)
    W, b = affine_map(model, SHAPE, chunk=3)
    mapped, also_b = affine_map(model, SHAPE, chunk=3, out=tmp_path / "new" / "W.safetensors")
    stored = safetensors.torch.load_file(tmp_path / "new" / "W.safetensors")
    assert list(stored) == ["W"] and W.dtype == dtype and W.abs().max() > 0
    assert torch.equal(mapped, W) and torch.equal(stored["W"], W) and torch.equal(also_b, b)
    assert mapped.dtype == dtype and mapped.is_contiguous() and mapped.data_ptr() % 8 == 0
    assert os.listdir(tmp_path / "new") == ["W.safetensors"]


def test_the_map_is_of_the_file_and_never_writes_to_it(tmp_path):
    file = tmp_path / "W.safetensors"
    W = linear_map(network(), SHAPE, out=str(file))
    content = file.read_bytes()
    file.chmod(0o400)
    again = W.clone()
    W.mul_(2)
    assert file.read_bytes() == content and torch.equal(W, 2 * again)
    mapped = Path("/proc/self/maps")
    assert not mapped.exists() or str(file) in mapped.read_text()


def test_rows_go_to_the_disk_chunk_by_chunk(tmp_path, monkeypatch):
    sizes: list[int] = []

    def watched(rows: Iterator[Tensor], *arguments: object) -> Tensor:
        def noted() -> Iterator[Tensor]:
            for some in rows:
                (part,) = tmp_path.iterdir()
                sizes.append(part.stat().st_size)
                yield some

        return store(noted(), *arguments)

    store = maps._store
    monkeypatch.setattr(maps, "_store", watched)
    big = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 6))  # a row is more than what Python buffers
    linear_map(big, (3, 64, 64), chunk=2, out=tmp_path / "W.safetensors")
    row = 3 * 64 * 64 * 4
    assert len(sizes) == 3 and sizes[0] == 0 and sizes[1] >= 2 * row and sizes[2] >= 4 * row


KILLED = """
import os, signal, sys, torch, lrc
from lrc.linearization import jacobian
chunks, rows = [], jacobian._pulled_back
def deadly(*arguments):
    chunks.append(1)
    if len(chunks) == 2:
        assert [name for name in os.listdir(os.path.dirname(sys.argv[1])) if name.endswith(".part")]
        os.kill(os.getpid(), signal.SIGKILL)
    return rows(*arguments)
jacobian._pulled_back = deadly
lrc.linear_map(torch.nn.Linear(4, 6), (4,), chunk=2, out=sys.argv[1])
"""


def test_a_killed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "W.safetensors"
    linear_map(network(), SHAPE, out=file)
    before = file.read_bytes()
    died = subprocess.run([sys.executable, "-c", KILLED, str(file)], capture_output=True, text=True, timeout=120)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert file.read_bytes() == before


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file, model = tmp_path / "W.safetensors", network()
    linear_map(model, SHAPE, out=file)
    before, left, rows = file.read_bytes(), [1], jacobian._pulled_back

    def failing(*arguments):
        if not left:
            raise MemoryError("the second chunk")
        left.pop()
        return rows(*arguments)

    monkeypatch.setattr(jacobian, "_pulled_back", failing)
    with pytest.raises(MemoryError, match="the second chunk"):
        linear_map(model, SHAPE, chunk=2, out=file)
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == before


def test_a_map_outlives_the_file_that_takes_its_place(tmp_path):
    file = tmp_path / "W.safetensors"
    first, second = network(0), network(1)
    W = linear_map(first, SHAPE, out=file)
    linear_map(second, SHAPE, out=file)
    assert torch.equal(W, linear_map(first, SHAPE))
    assert torch.equal(safetensors.torch.load_file(file)["W"], linear_map(second, SHAPE))


def test_out_that_is_a_folder(tmp_path):
    with pytest.raises(lrc.InputError, match=r"is a folder: give the name of a file"):
        linear_map(network(), SHAPE, out=tmp_path)


# --- chunks and the bar ----------------------------------------------------------------------------------------------


def test_the_chunk_follows_from_the_largest_activation(monkeypatch):
    seen: list[int] = []
    rows = jacobian._pulled_back

    def noting(z, x, units, learning):
        seen.append(len(units))
        return rows(z, x, units, learning)

    monkeypatch.setattr(jacobian, "_pulled_back", noting)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Flatten(), nn.Linear(1024, 10)
    )  # 16 x 8 x 8 float32: 4 KiB
    W = linear_map(model, SHAPE)
    assert seen == [10]
    monkeypatch.setattr(jacobian, "BUDGET", 4 * 4096)
    torch.testing.assert_close(linear_map(model, SHAPE), W, rtol=1e-5, atol=1e-7)
    assert seen == [10, 4, 4, 2]
    monkeypatch.setattr(jacobian, "BUDGET", 1)
    linear_map(model, SHAPE)
    assert seen[4:] == [1] * 10
    monkeypatch.setattr(jacobian, "BUDGET", 4 * 4096)
    local_map(model, torch.rand(2, *SHAPE))  # two images: half as many classes
    assert seen[14:] == [2] * 5


class OneAtATime(nn.Module):
    """What an exported network may be: made for a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))

    def forward(self, x):
        assert len(x) == 1
        return self.inner(x)


class Noisy(nn.Module):
    """Another derivative each time: rows of one map must come out of one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(10, 192))

    def forward(self, x):
        return nn.functional.linear(x.flatten(1) * torch.rand(len(x), 1).exp(), self.weight)


def test_all_rows_of_a_map_come_out_of_one_forward_pass_of_its_images():
    model, noisy = OneAtATime(), Noisy()
    assert torch.equal(local_map(model.inner, torch.zeros(1, *SHAPE))[0].flatten(1), model.inner[1].weight)
    with jacobian.differentiated(model, torch.zeros(1, *SHAPE)) as (_, chunks):
        assert torch.allclose(torch.cat(list(chunks))[:, 0].flatten(1), model.inner[1].weight)
    rows = local_map(noisy, torch.rand(1, *SHAPE))[0].flatten(1)
    assert torch.allclose(rows, rows[:1].expand_as(rows)) and not torch.allclose(rows, noisy.weight)


def test_many_images_have_the_same_maps_as_few():
    """They are differentiated class by class, few in batches of vectors."""
    model, x = network(), images(jacobian.MANY + 1)
    expected = torch.cat([local_map(model, image[None]) for image in x])
    torch.testing.assert_close(local_map(model, x), expected, rtol=1e-10, atol=1e-12)


def test_choices_are_those_of_linearize():
    model = network()
    folded = linear_map(model, SHAPE, batchnorm="fold")
    inner = lrc.linearize(model, batchnorm="fold")
    torch.testing.assert_close(folded, brute_force(inner, images(1))[0], rtol=1e-10, atol=1e-14)
    assert not torch.allclose(folded, linear_map(model, SHAPE))
    with pytest.raises(TypeError, match="colour"):
        linear_map(model, SHAPE, colour="red")
    for name in ("keep", "start", "stop"):
        with pytest.raises(lrc.InputError, match=f"{name} leaves parts that are not linear"):
            linear_map(model, SHAPE, **{name: "0.stem"})


def test_the_bar_is_on_stderr_and_only_for_a_person(capfd, monkeypatch):
    for progress in (False, True):
        linear_map(network(), SHAPE, progress=progress)
        assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    linear_map(network(), SHAPE)
    assert capfd.readouterr() == ("", "")
    linear_map(network(), SHAPE, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "rows of W" in err and "100%" in err


# --- local maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 1, 2, 100])
def test_local_maps_by_brute_force(chunk):
    model, x = network(), images(4)
    J = local_map(model.train(), x, chunk=chunk)
    expected = brute_force(model.eval(), x)
    assert J.shape == (4, 5, *SHAPE) and not J.requires_grad
    torch.testing.assert_close(J, expected, rtol=1e-10, atol=1e-14)
    assert (J[0] - J[1]).abs().max() > 0.1 * J.abs().max()
    assert (J[0] - linear_map(model, SHAPE)).abs().max() > 0.1 * J.abs().max()


def test_the_local_map_of_a_two_layer_network():
    model, x = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3)).double(), images(6, 4) - 0.5
    gates = (model[0](x) > 0).double()
    expected = torch.einsum("ch,nh,hi->nci", model[2].weight, gates, model[0].weight)
    torch.testing.assert_close(local_map(model, x), expected.detach())
    torch.testing.assert_close(mean_local_map(model, x, batch_size=4), expected.detach().mean(0))


def test_a_linear_network_has_one_map():
    model, x = linear_network(), images(4)
    W = linear_map(model, SHAPE, batchnorm="fold")
    for centre in (False, True):
        torch.testing.assert_close(local_map(model, x), W.expand(4, *W.shape))
        torch.testing.assert_close(alignment(local_map(model, x), W, centre=centre), torch.ones(4, 5).double())
    torch.testing.assert_close(mean_local_map(model, x, batch_size=3), W)


class Output(nn.Module):
    """Gives an object, as the networks of transformers do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        z = self.model(x)
        return types.SimpleNamespace(loss=None, logits=z, hidden_states=(x, z))


def test_of_an_object_the_logits_are_taken():
    model, x = network().eval(), images(2)
    torch.testing.assert_close(local_map(Output(model), x), local_map(model, x))
    torch.testing.assert_close(mean_local_map(Output(model), x), mean_local_map(model, x))
    torch.testing.assert_close(linear_map(Output(model), SHAPE), linear_map(model, SHAPE))
    assert superposition_error(Output(nn.Flatten()), SHAPE) < 1e-12 < superposition_error(Output(nn.ReLU()), SHAPE)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
def test_the_mean_is_that_of_the_local_maps(batch_size):
    model, x = network(), images(7)
    mean = mean_local_map(model, x, batch_size=batch_size, chunk=2)
    torch.testing.assert_close(mean, local_map(model, x).mean(0), rtol=1e-10, atol=1e-14)


def test_the_model_and_the_images_stay_as_they_were():
    model, x = network().train(), images(3).requires_grad_()
    model[0].fc.eval()
    model[1].weight.requires_grad_(False)
    model[1].bias.grad = torch.full_like(model[1].bias, 7)
    calls: list[nn.Module] = []
    model[1].register_forward_hook(lambda module, *_: calls.append(module))

    def state() -> list[object]:
        return [
            [m.training for m in model.modules()],
            [(id(p), p._version, p.requires_grad, p.grad) for p in model.parameters()],
            [(id(b), b._version) for b in model.buffers()],
            [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()],
            (x.requires_grad, x.grad, x._version),
        ]

    before, values = state(), copy.deepcopy(model.state_dict())
    local_map(model, x)
    mean_local_map(model, x, batch_size=2)
    with pytest.raises(lrc.InputError):
        local_map(model, x[:, :2])
    assert state() == before
    assert all(torch.equal(a, b) for a, b in zip(values.values(), model.state_dict().values(), strict=True))


def test_contexts_make_no_difference():
    model, x = network(), images(2)
    expected = local_map(model, x)
    with torch.no_grad():
        assert torch.equal(local_map(model, x), expected)
    with torch.inference_mode():
        assert torch.equal(local_map(model, x.clone()), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(local_map(model, x), expected)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(x.flatten(1).argmax(1), 200).float()


def test_what_has_no_local_map():
    model, x = network(), images(2)
    with pytest.raises(lrc.InputError, match="no derivative by the image"):
        local_map(Constant(), x)
    with pytest.raises(
        lrc.InputError, match=r"expected logits of shape \(2, classes\) for 2 images, got \(2, 3, 8, 8\)"
    ):
        local_map(nn.ReLU(), x)
    for wrong in ({"chunk": 0}, {"batch_size": 0}):
        with pytest.raises(lrc.InputError, match=f"{next(iter(wrong))} must be a whole number >= 1"):
            mean_local_map(model, x, **wrong)
    for function in (local_map, mean_local_map):
        with pytest.raises(lrc.InputError, match="no images"):
            function(model, x[:0])


class Clipped(torch.autograd.Function):
    """A backward of its own, which works on NumPy arrays and so on no tensors in batches."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(gradient.numpy() * (x.numpy() > 0))


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("kind", ["custom backward", "cross-map norm", "compiled part"])
def test_derivatives_that_do_not_come_in_batches(kind, chunk):
    part = {"custom backward": Clipped.apply, "cross-map norm": nn.CrossMapLRN2d(2), "compiled part": torch.relu}[kind]
    model = Written(lambda m, x: m.fc(part(m.conv(x)).flatten(1)), conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(144, 5)).eval()
    expected = brute_force(model, images(2))
    if kind == "compiled part":
        model.conv.compile(backend="aot_eager")
    torch.testing.assert_close(local_map(model, images(2), chunk=chunk), expected, rtol=1e-10, atol=1e-14)


# --- alignment -------------------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("centre", [False, True])
def test_alignment_is_the_cosine(centre):
    local, W = normal(3, 4, 2, 5), normal(4, 2, 5, seed=1)
    a, b = local, W
    if centre:
        a, b = local - local.mean(1, keepdim=True), W - W.mean(0)
    expected = [[F.cosine_similarity(a[i, j].flatten(), b[j].flatten(), dim=0) for j in range(4)] for i in range(3)]
    torch.testing.assert_close(alignment(local, W, centre=centre), torch.tensor(expected, dtype=torch.float64))


def test_alignment_knows_direction_not_length():
    W = normal(4, 10, dtype=torch.float32)
    scales = torch.tensor([1e-30, 1.0, 1e30])[:, None, None]
    torch.testing.assert_close(alignment(scales * W, W), torch.ones(3, 4))
    torch.testing.assert_close(alignment(-W[None], W), -torch.ones(1, 4))
    shift = normal(10, seed=1, dtype=torch.float32)
    torch.testing.assert_close(alignment((W + 10 * shift)[None], W, centre=True), torch.ones(1, 4))
    assert alignment((W + 10 * shift)[None], W).max() < 0.9


def test_alignment_of_rows_without_a_direction():
    W, local = normal(4, 10), normal(3, 4, 10, seed=1)
    local[2, 1] = 0
    with pytest.raises(lrc.InputError, match=r"class 1 in the local maps \(map 2\) is zero"):
        alignment(local, W)
    alignment(local, W, centre=True)
    with pytest.raises(lrc.InputError, match="class 0 in W.* equals the mean row"):
        alignment(local[:2], torch.full((4, 10), 0.1, dtype=torch.float64), centre=True)


# --- networks and shapes that are not the usual ones -----------------------------------------------------------------


class Written(nn.Module):
    """A network by its forward, a function of it and the images; with fixed weights, in float64."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], object], **modules: nn.Module) -> None:
        super().__init__()
        self.written = forward
        for name, module in modules.items():
            self.add_module(name, module)
        g = Generator().manual_seed(0)
        for p in self.double().parameters():
            p.data.normal_(0, 0.1, generator=g)

    def forward(self, x: Tensor) -> object:
        return self.written(self, x)


def test_a_view_of_feature_maps():
    model = Written(
        lambda m, x: m.fc(m.pool(torch.relu(m.conv(x))).view(-1, 24)),
        conv=nn.Conv2d(3, 6, 5),
        pool=nn.MaxPool2d(2),
        fc=nn.Linear(24, 5),
    )
    W, b = affine_map(model, SHAPE)
    torch.testing.assert_close(W, brute_force(lrc.linearize(model), images(1))[0], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(b, lrc.linearize(model)(images(1) * 0)[0].detach())
    x = images(3)
    expected = brute_force(model, x)
    torch.testing.assert_close(local_map(model, x), expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(local_map(model, x.to(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(mean_local_map(model, x, batch_size=2), expected.mean(0))


@pytest.mark.parametrize("begin", [F.relu_, lambda x: x.sub_(x.mean((1, 2, 3), keepdim=True).detach())])
def test_a_network_that_begins_in_place(begin):
    model = Written(lambda m, x: m.fc(begin(x).flatten(1)), fc=nn.Linear(192, 5))
    x = images(2) - 0.5
    before, weight = x.clone(), model.fc.weight.detach().view(5, *SHAPE)
    expected = weight * (x > 0)[:, None] if begin is F.relu_ else weight.expand(2, *weight.shape)
    torch.testing.assert_close(local_map(model, x), expected, rtol=1e-10, atol=1e-14)
    assert torch.equal(x, before)
    if begin is F.relu_:
        torch.testing.assert_close(linear_map(model, SHAPE), weight)
        assert superposition_error(model, SHAPE) > 0.01


def unpacking(model: nn.Module, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return model.fc(x.reshape(n, c * h * w))


WRONG = [
    (lambda m, x: m.fc(x[:, 2].flatten(1)), (1, 8, 8), "index 2 is out of bounds"),
    (lambda m, x: m.fc(x.flatten(4)), (3, 8), "Dimension out of range"),
    (unpacking, (192,), ""),
]


@pytest.mark.parametrize("forward, shape, reason", WRONG, ids=["index", "flatten", "unpack"])
def test_images_of_a_wrong_shape(forward, shape, reason, capfd):
    model = Written(forward, fc=nn.Linear(192, 5))
    x = images(2, *shape)
    calls = [
        lambda: linear_map(model, shape),
        lambda: local_map(model, x),
        lambda: mean_local_map(lrc.linearize(model), x),
        lambda: superposition_error(model, shape),
        lambda: superposition_error(lrc.linearize(model), shape),
        lambda: lrc.linearize(model, input_shape=shape),
    ]
    for call in calls:
        with pytest.raises(lrc.InputError, match=r"images? of shape \(.*\b.*: .*" + reason) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # where fx prints tracebacks of its own


def test_networks_that_look_at_the_shape_themselves():
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        assert x.shape[1] == 3, "three channels, please"
        return model.fc(x.flatten(1))

    model = Written(forward, fc=nn.Linear(192, 5))
    with pytest.raises(lrc.InputError, match=r"not take images of shape \(1, 8, 24\): three channels, please"):
        local_map(model, images(2, 1, 8, 24))
    with pytest.raises(lrc.InputError, match=r"not take images of shape \(1, 8, 24\): three channels, please"):
        superposition_error(model, (1, 8, 24))


def test_what_is_no_shape_of_an_image(unchecked):
    model = network()
    for shape in (8, (3, -8, 8), (3, 0, 8), (3, 8.0, 8), "388"):
        for call in (linear_map, superposition_error, lambda m, shape: lrc.linearize(m, input_shape=shape)):
            with pytest.raises(lrc.InputError, match="the shape of one image is a few positive integers") as caught:
                call(model, shape)
            assert repr(shape) in str(caught.value)
    model.input_shape = 8
    with pytest.raises(lrc.InputError, match="positive integers, as in .*, not 8"):
        linear_map(model)


def test_images_of_integers(unchecked):
    x = torch.randint(0, 256, (2, *SHAPE), generator=Generator().manual_seed(0), dtype=torch.uint8)
    for function in (local_map, mean_local_map):
        with pytest.raises(lrc.InputError, match=r"images of torch\.uint8 .*x\.float\(\) / 255"):
            function(network(), x)


def test_alignment_of_other_shapes(unchecked):
    W = normal(4, 2, 5)
    for local in (normal(4, 2, 5), normal(1, 3, 2, 5), normal(1, 4, 5, 2), normal(1, 4, 10)):
        with pytest.raises(
            lrc.InputError, match=r"they have \(n, 4, 2, 5\), a mean one as mean_local_map\(\.\.\.\)\[N"
        ):
            alignment(local, W)
    with pytest.raises(lrc.InputError, match=r"W must be rows \(n, \.\.\.\) .*, not \(4,\)"):
        alignment(normal(3, 4), normal(4))


def test_a_map_that_is_not_finite(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 6, bias=False)).double()
    model[1].weight.data[4] = 1e300
    model[0].weight.data.fill_(1e300)
    with pytest.raises(lrc.InputError, match="W is not finite: .* overflows in float64 or divides by zero"):
        linear_map(model, (4,), chunk=2, out=tmp_path / "W.safetensors", verify=False)
    assert not list(tmp_path.iterdir())
    model[1].weight.data[4] = float("nan")
    with pytest.raises(lrc.InputError, match="verify: .* is not finite at random images"):
        linear_map(model, (4,))
    model[1].weight.data[4] = 0
    assert linear_map(model, (4,)).isfinite().all()


# --- superposition ---------------------------------------------------------------------------------------------------


def logits_in(collection: Callable[[Tensor], object]) -> nn.Module:
    return Written(lambda m, x: collection(m.fc(x.flatten(1))), fc=nn.Linear(192, 5)).eval()


@pytest.mark.parametrize(
    "collection",
    [
        lambda z: {"logits": torch.tanh(z)},
        lambda z: {"a": z, "b": [z, {"c": (torch.tanh(z),)}]},
        lambda z: [z, torch.tanh(z), None],
        lambda z: (z, (100 * torch.tanh(z)).long()),
        lambda z: (z, float(z.square().sum())),
    ],
    ids=["mapping", "nested", "list", "integers", "number"],
)
def test_superposition_of_collections(collection):
    assert superposition_error(logits_in(collection), SHAPE) > 0.01


def test_superposition_of_what_is_affine():
    model = logits_in(lambda z: {"z": z, "more": [2 * z, None, torch.arange(3), True, 1.5, z[:0], z + 1j * z]})
    assert superposition_error(model, SHAPE) < 1e-12


def test_superposition_of_unknown_types():
    for value in ("text", {1, 2}, object()):
        with pytest.raises(lrc.InputError, match=f"superposition of a {type(value).__name__} cannot be checked"):
            superposition_error(logits_in(lambda z, value=value: (z, value)), SHAPE)


@pytest.mark.parametrize("collection", [lambda z: (z, z / (z - z), z), lambda z: {"a": z / (z - z), "b": z.tanh()}])
def test_superposition_does_not_lose_a_nan(collection):
    assert math.isnan(superposition_error(logits_in(collection), SHAPE))


def test_verify_looks_into_mappings_and_at_nan():
    model = logits_in(lambda z: {"logits": torch.tanh(z)})
    with pytest.raises(lrc.InputError, match="verify: node 'tanh' .* is not affine, superposition fails"):
        lrc.linearize(model, rules={torch.tanh: "linear"}, input_shape=SHAPE)
    lrc.linearize(model, input_shape=SHAPE)
    infinite = Written(lambda m, x: (m.fc(x.flatten(1)), x * float("inf")), fc=nn.Linear(192, 5))
    with pytest.raises(lrc.InputError, match="verify: node 'mul' .* is not finite at random images"):
        lrc.linearize(infinite, input_shape=SHAPE)


def old_norms() -> list[Callable[[nn.Module], nn.Module]]:
    return [nn.utils.weight_norm, nn.utils.spectral_norm, lambda m: prune.random_unstructured(m, "weight", 0.5)]


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("index", range(3), ids=["weight_norm", "spectral_norm", "prune"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_verify_of_weights_that_hooks_make(index, dtype):
    normed = old_norms()[index]
    model = nn.Sequential(normed(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), normed(nn.Linear(144, 5)))
    x = images(2).to(dtype)
    model.to(dtype)(x)  # after a forward in training the weights are no leaves of the graph
    weight = model[3].weight
    linear = lrc.linearize(model.eval(), input_shape=SHAPE)
    assert model[3].weight is weight and weight.dtype == dtype and weight.requires_grad
    z = model[3](model[2](model[0](x)))
    torch.testing.assert_close(linear(x), z)
    wrong = nn.Sequential(*model, nn.Tanh())
    with pytest.raises(lrc.InputError, match="verify: node .* is not affine"):
        lrc.linearize(wrong, rules={nn.Tanh: "linear"}, input_shape=SHAPE)


def test_verify_of_what_cannot_be_copied():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    model[1].lock = threading.Lock()
    assert lrc.linearize(model, input_shape=SHAPE)(torch.zeros(1, *SHAPE)).shape == (1, 5)


class Slightly(nn.Module):
    """Bent by so little, of a value so much larger, that single precision does not show it in the logits."""

    def __init__(self, bend: float) -> None:
        super().__init__()
        self.bend, self.fc = bend, nn.Linear(192, 5)

    def forward(self, x):
        return self.fc(x.flatten(1)) + 1e-6 * torch.tanh(self.bend * x).flatten(1)[:, :5]


def test_verify_sees_each_operation_for_itself():
    with pytest.raises(lrc.InputError, match="verify: node 'tanh' .* is not affine"):
        lrc.linearize(Slightly(1.0), rules={torch.tanh: "linear"}, input_shape=SHAPE)
    assert lrc.linearize(Slightly(1.0), input_shape=SHAPE)


def test_verify_leaves_the_network_alone():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    before = {name: (value.dtype, value.data_ptr()) for name, value in model.state_dict().items()}
    linear = lrc.linearize(model, input_shape=SHAPE)
    assert {name: (value.dtype, value.data_ptr()) for name, value in model.state_dict().items()} == before
    assert {(p.dtype, p.data_ptr()) for p in linear.parameters()} == set(before.values())
