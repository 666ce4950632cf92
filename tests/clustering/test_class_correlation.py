"""class_correlation in blocks of columns: against the plain formula, in memory, of a network, and its gradient."""

import fractions
import weakref
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

import lrc
from lrc import class_correlation
from lrc.clustering import similarity


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed), dtype=dtype)


def plain(W: Tensor, centre: bool) -> Tensor:
    """The formula, all at once in float64, each row scaled to 1 by hand."""
    rows = W.double().flatten(1)
    rows = rows - rows.mean(0) if centre else rows
    rows = rows / rows.abs().amax(1, keepdim=True)
    unit = rows / rows.norm(dim=1, keepdim=True)
    return unit @ unit.T


@pytest.fixture(params=[1, 8, 40, 2**22])
def block(request, monkeypatch):
    """Columns of W at a time: one, some, some that do not divide all, all."""
    monkeypatch.setattr(similarity, "BLOCK", request.param)


CASES = {
    "plain": normal(4, 3, 5, 7, dtype=torch.float32),
    "double": normal(4, 3, 5, 7),
    "brain": normal(4, 3, 5, 7).to(torch.bfloat16),
    "sizes": normal(4, 105, dtype=torch.float32) * torch.tensor([1e-30, 1e30, 1.0, 1e-36])[:, None],
    "columns": normal(4, 105, dtype=torch.float32) * torch.logspace(-30, 30, 105),
    "common": 1e6 + 30 * normal(4, 105, dtype=torch.float32),
    "double sizes": normal(4, 105) * torch.tensor([1e-300, 1e300, 1.0, 1e-200], dtype=torch.float64)[:, None],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("centre", [False, True])
def test_the_plain_formula(name, centre, block):
    W = CASES[name]
    before = W.clone()
    C = class_correlation(W, centre=centre)
    assert C.dtype == W.dtype and C.shape == (4, 4)
    assert (C.double() - plain(W, centre)).abs().max() <= 4 * torch.finfo(W.dtype).eps
    assert torch.equal(C, C.T) and (C.diag() == 1).all() and C.abs().max() == 1
    assert torch.equal(W, before)


def test_a_large_common_mean_by_fractions():
    """In float32 the centred rows would be lost; the exact answer is taken from rational arithmetic."""
    W = 1e6 + 30 * normal(3, 12, dtype=torch.float32)
    rows = [[fractions.Fraction(v) for v in row] for row in W.tolist()]
    mean = [sum(column) / 3 for column in zip(*rows, strict=True)]
    rows = [[v - m for v, m in zip(row, mean, strict=True)] for row in rows]
    gram = [[sum(a * b for a, b in zip(p, q, strict=True)) for q in rows] for p in rows]
    exact = [[float(gram[i][j]) / float(gram[i][i] * gram[j][j]) ** 0.5 for j in range(3)] for i in range(3)]
    assert (class_correlation(W, centre=True) - torch.tensor(exact)).abs().max() <= 1e-7


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 6), st.integers(2, 40), st.integers(1, 60), st.integers(0, 1000), st.booleans())
def test_blocks_change_nothing(classes, columns, size, seed, centre):
    W, before = normal(classes, columns, seed=seed), similarity.BLOCK
    try:
        similarity.BLOCK = size
        C = class_correlation(W, centre=centre)
    finally:
        similarity.BLOCK = before
    torch.testing.assert_close(C, class_correlation(W, centre=centre), rtol=0, atol=1e-14)


@pytest.mark.parametrize("centre", [False, True])
def test_the_gradient(centre, block):
    W = normal(4, 3, 5, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda W: class_correlation(W, centre=centre), W)


def test_the_gradient_keeps_the_type_and_may_train_a_network():
    model = nn.Linear(6, 4, bias=False)
    for _ in range(200):
        loss = (class_correlation(model.weight, centre=True)[:2, :2] - torch.eye(2)).square().sum()
        (g,) = torch.autograd.grad(loss, model.weight)
        model.weight.data -= g
    assert g.dtype == torch.float32 and loss < 1e-4


def test_rows_without_a_direction(block):
    W = normal(4, 20, dtype=torch.float32)
    W[1], W[3, 7] = 0, torch.inf
    with pytest.raises(lrc.InputError, match=r"classes \[1, 3\] are zero or are not finite"):
        class_correlation(W)
    equal = 1000 + 1e-4 * normal(4, 20, dtype=torch.float32)  # equal but for rounding
    with pytest.raises(lrc.InputError, match="equal the mean row"):
        class_correlation(equal, centre=True)


def test_of_a_network():
    model = lrc.models.resnet8(classes=5, width=4, generator=Generator().manual_seed(0))
    for centre in (False, True):
        expected = class_correlation(lrc.linear_map(model), centre=centre)
        assert torch.equal(class_correlation(model, centre=centre), expected)
    with pytest.raises(lrc.InputError, match="does not say what it takes"):
        class_correlation(nn.Linear(4, 3))


def test_of_a_memory_map(tmp_path):
    model = lrc.models.resnet8(classes=5, width=4, generator=Generator().manual_seed(0))
    mapped = lrc.linear_map(model, out=tmp_path / "W.safetensors")
    assert torch.equal(class_correlation(mapped, centre=True), class_correlation(model, centre=True))


def test_blocks_are_small_and_do_not_pile_up(monkeypatch):
    blocks, seen = similarity._blocks, []

    def watched(rows: Tensor, centre: bool) -> Iterator[Tensor]:
        for block in blocks(rows, centre):
            seen.append(weakref.ref(block))
            assert block.numel() <= 1000 and sum(one() is not None for one in seen) <= 2
            yield block

    monkeypatch.setattr(similarity, "BLOCK", 1000)
    monkeypatch.setattr(similarity, "_blocks", watched)
    class_correlation(normal(10, 2000, dtype=torch.float32), centre=True)
    assert len(seen) == 2 * 20
