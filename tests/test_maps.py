"""linear_map to a file, in chunks and with a bar; local maps and their alignment: brute force and closed forms."""

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import lrc
from lrc.linearization import affine_map, alignment, linear_map, local_map, maps, mean_local_map

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
chunks, grad = [], torch.autograd.grad
def deadly(*arguments, **options):
    chunks.append(1)
    if len(chunks) == 2:
        assert [name for name in os.listdir(os.path.dirname(sys.argv[1])) if name.endswith(".part")]
        os.kill(os.getpid(), signal.SIGKILL)
    return grad(*arguments, **options)
torch.autograd.grad = deadly
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
    before, left, grad = file.read_bytes(), [1], torch.autograd.grad

    def failing(*arguments, **options):
        if not left:
            raise MemoryError("the second chunk")
        left.pop()
        return grad(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "grad", failing)
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
    grad = torch.autograd.grad

    def noting(z, x, units, **options):
        seen.append(len(units))
        return grad(z, x, units, **options)

    monkeypatch.setattr(torch.autograd, "grad", noting)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Flatten(), nn.Linear(1024, 10)
    )  # 16 x 8 x 8 float32: 4 KiB
    W = linear_map(model, SHAPE)
    assert seen == [10]
    monkeypatch.setattr(maps, "BUDGET", 4 * 4096)
    torch.testing.assert_close(linear_map(model, SHAPE), W, rtol=1e-5, atol=1e-7)
    assert seen == [10, 4, 4, 2]
    monkeypatch.setattr(maps, "BUDGET", 1)
    linear_map(model, SHAPE)
    assert seen[4:] == [1] * 10
    monkeypatch.setattr(maps, "BUDGET", 4 * 4096)
    local_map(model, torch.rand(2, *SHAPE))  # two images: half as many classes
    assert seen[14:] == [2] * 5


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
        with pytest.raises(lrc.InputError, match=f"{next(iter(wrong))} must be at least one"):
            mean_local_map(model, x, **wrong)
    for function in (local_map, mean_local_map):
        with pytest.raises(lrc.InputError, match="no images"):
            function(model, x[:0])


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
