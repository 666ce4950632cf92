"""Whatever runs a network leaves it as it was; norms have right derivatives; neighbours do not count."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from odd import ODD, Network, odd, state
from torch import Generator, Tensor, nn

import lrc
from lrc import attacks
from lrc.utils.networks import check_independent, modules, preserved, replaced, untouched

X = torch.rand(4, 3, 8, 8, generator=Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])
DATA = lrc.Images((255 * X).byte(), Y, ("a", "b", "c"))


def attacking(name: str, **options: object) -> Callable[[nn.Module], object]:
    return lambda model: getattr(attacks, name)(model, X, Y, eps=0.05, **options)


CALLS: dict[str, Callable[[nn.Module], object]] = {
    "fgsm": attacking("fgsm"),
    "pgd": attacking("pgd", steps=2),
    "mifgsm": attacking("mifgsm", steps=2),
    "apgd": attacking("apgd", steps=2),
    "fab": attacking("fab", steps=2),
    "square": attacking("square", queries=3),
    "nes": attacking("nes", queries=60),
    "nattack": attacking("nattack", queries=400),
    "cw": lambda model: attacks.cw(model, X, Y, steps=2),
    "autoattack": attacking("autoattack", version={"a": partial(attacks.apgd, steps=2)}),
    "linearize": lrc.linearize,
    "linear_map": lrc.linear_map,
    "affine_map": partial(lrc.affine_map, batchnorm="fold"),
    "local_map": lambda model: lrc.local_map(model, X),
    "mean_local_map": lambda model: lrc.mean_local_map(model, X, batch_size=3),
    "class_correlation": lrc.class_correlation,
    "accuracy": lambda model: lrc.accuracy(model, DATA),
    "logits": lambda model: lrc.logits(model, DATA),
    "evaluate": lambda model: lrc.evaluate(model, DATA, attacks="fgsm", masking=False),
}
TRACING = ("linearize", "linear_map", "affine_map", "class_correlation")


@pytest.mark.filterwarnings("ignore:.*spectral_norm. is deprecated")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ODD)
def test_the_network_is_left_as_it_was(name, call):
    """Parameters as objects, buffers, modes, hooks, gradients, attributes: also where the call refuses the network."""
    model = odd(name)
    before = state(model)
    try:
        CALLS[call](model)
    except lrc.InputError:
        assert call in TRACING
    assert state(model) == before


@pytest.mark.filterwarnings("ignore:.*spectral_norm. is deprecated")
@pytest.mark.parametrize("name", ODD)
def test_a_loss_at_other_weights_leaves_the_parameters_and_moves_the_buffers_once(name):
    """AWP, the Jacobian term and the term on the rows of W: the network ends as after the loss alone."""
    expected = odd(name)
    torch.manual_seed(0)  # of dropout
    F.cross_entropy(expected(X), Y)
    buffers = [b.clone() for m in modules(expected) for b in m._buffers.values() if b is not None]
    rows = {"clustering": 0.1, "groups": [[0, 1], [2]], "on": "rows"}
    for kind, options in (("standard", {"awp": 0.05}), ("jacobian", {}), ("standard", rows)):
        model = odd(name)
        before = [(id(p), p.detach().clone()) for m in modules(model) for p in m._parameters.values() if p is not None]
        torch.manual_seed(0)
        try:
            lrc.objectives.named(kind, **options)(model, X, Y).backward()
        except lrc.InputError:
            assert "on" in options and name in ("recurrent", "unregistered", "counting", "remembering")
            continue
        after = [p for m in modules(model) for p in m._parameters.values() if p is not None]
        assert all(id(p) == i and torch.equal(p, value) for p, (i, value) in zip(after, before, strict=True))
        moved = [b for m in modules(model) for b in m._buffers.values() if b is not None]
        if "awp" not in options:  # its one pass is at other weights, so of other features
            torch.testing.assert_close(moved, buffers)
        counts = [b for b in moved if not b.is_floating_point()]
        assert counts == [b for b in buffers if not b.is_floating_point()]


@pytest.mark.parametrize("call", [name for name in CALLS if hasattr(attacks, name)])
def test_images_with_a_graph_give_images_without(call, monkeypatch):
    """Left over from a saliency map, say."""
    model, x = odd("shared"), X.clone().requires_grad_()
    monkeypatch.setitem(globals(), "X", x * 1)
    found = CALLS[call](model)
    found = found.x_adv if call == "autoattack" else found
    assert not found.requires_grad and found.grad_fn is None and x.grad is None


class Flat(nn.Module):
    """Convolution and linear layer, between them the images as rows, by a function that may want them contiguous."""

    input_shape = (3, 8, 8)

    def __init__(self, flat: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.fc, self.flat = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 3), flat

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flat(torch.relu(self.stem(x))))


@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"linearize"}))
def test_a_network_that_views_its_images_as_rows_is_run_too(call):
    viewing, other = Flat(lambda x: x.view(len(x), -1)), Flat(lambda x: x.flatten(1))
    other.load_state_dict(viewing.state_dict())
    found, expected = (CALLS[call](model) for model in (viewing, other))
    if call in ("linear_map", "local_map", "mean_local_map", "class_correlation", "logits"):  # not random
        assert torch.allclose(found, expected, atol=1e-5)


def test_other_weights_take_every_place_of_a_shared_one():
    model = odd("tied")
    weight, new = model.one.weight, torch.zeros(4, 4, 1, 1)
    with replaced(model, {id(weight): new}):
        assert model.one.weight is new and model.two.weight is new
        inside = model(X)
    assert model.one.weight is weight and model.two.weight is weight
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(inside, model(X))


def test_layers_in_lists_are_in_eval_mode_too():
    model = odd("unregistered")
    expected = odd("unregistered").eval()
    for part in (*expected.layers, *expected.named["last"]):
        part.eval()
    with untouched(model):
        assert not any(m.training for m in modules(model)) and len(modules(model)) == 7
        assert not any(p.requires_grad for m in modules(model) for p in m.parameters())
        assert torch.equal(model(X), expected(X))


def test_a_lazy_layer_is_refused_before_it_makes_its_weights():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    for call in (CALLS["pgd"], CALLS["local_map"], CALLS["accuracy"]):
        with pytest.raises(lrc.InputError, match="has lazy layers|LazyLinear has no weights yet"):
            call(model)
    assert isinstance(model[1], nn.LazyLinear) and model[1].has_uninitialized_params()


def test_a_failing_network_is_left_as_it_was_too():
    model = odd("counting")
    before = state(model)
    with pytest.raises(ZeroDivisionError), preserved(model):
        model.eval()(X)
        model.register_forward_hook(print)
        model.stem.weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
        model.add_module("more", nn.ReLU())
        raise ZeroDivisionError
    assert state(model) == before


# --- derivatives of norms ---------------------------------------------------------------------------------------------


def relaid(t: Tensor, order: tuple[int, ...]) -> Tensor:
    """The same values with the dimensions in another order in memory."""
    back = [order.index(i) for i in range(t.dim())]
    return t.permute(order).contiguous().permute(back)


@settings(deadline=None, max_examples=150)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    st.permutations(range(4)), st.permutations(range(4)), st.sampled_from(["batch", "instance", "instance, kept"]),
    st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_norms_have_their_derivative_in_every_layout(shape, first, second, kind, affine, seed):
    """Against the formula, plain and in batches; PyTorch's own is wrong for one image between two layouts."""
    g = Generator().manual_seed(seed)
    x, gradient = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    stat = [torch.rand(shape[1], generator=g, dtype=torch.float64) + 0.5 for _ in range(4)]
    mean, var, weight, bias = stat if affine else (*stat[:2], None, None)
    place = (1, -1, 1, 1)
    own = kind == "instance" and shape[2] * shape[3] > 1
    centre, spread = mean.view(place), var.view(place)
    given_x = relaid(x, tuple(first)).requires_grad_()
    if own:
        centre = given_x.mean((2, 3), keepdim=True)
        spread = given_x.var((2, 3), correction=0, keepdim=True)
    expected = (given_x - centre) / (spread + 1e-5).sqrt()
    expected = expected * weight.view(place) + bias.view(place) if affine else expected
    with untouched(nn.Identity()):
        if kind == "batch":
            z = F.batch_norm(given_x, mean, var, weight, bias)
        elif own:
            z = F.instance_norm(given_x, weight=weight, bias=bias)
        else:
            z = F.instance_norm(given_x, mean, var, weight, bias, use_input_stats=False)
    incoming = relaid(gradient, tuple(second))
    (right,) = torch.autograd.grad(expected, given_x, incoming, retain_graph=True)
    (plain,) = torch.autograd.grad(z, given_x, incoming, retain_graph=True)
    (batched,) = torch.autograd.grad(z, given_x, torch.stack([incoming, 2 * incoming], -1).movedim(-1, 0),
                                     is_grads_batched=True)  # fmt: skip
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(plain, right, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(batched, torch.stack([right, 2 * right]), rtol=1e-6, atol=1e-9)


class Shuffled(Network):
    """A shuffle of channels before a batch norm, a convolution after it: the norm lies between two layouts."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.conv = norm, nn.Conv2d(4, 4, 3, padding=1)

    def shuffled(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(self.norm(self.shuffled(x))))


class Formula(nn.Module):
    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        mean, scale, bias = (
            t.view(1, -1, 1, 1) for t in (n.running_mean, n.weight / (n.running_var + n.eps).sqrt(), n.bias)
        )
        return (x - mean) * scale + bias


def test_one_image_between_two_layouts():
    g = Generator().manual_seed(0)
    model = Shuffled(nn.BatchNorm2d(4)).double()
    for t in (model.norm.running_mean, model.norm.weight.data, model.norm.running_var):
        t.uniform_(0.5, 2, generator=g)
    x = X[:1].double()
    written = Shuffled(Formula(model.norm)).double().eval()
    written.load_state_dict({k.replace("norm.", "norm.norm."): v for k, v in model.state_dict().items()})
    expected = torch.autograd.functional.jacobian(written, x)[0, :, 0]
    torch.testing.assert_close(lrc.local_map(model, x)[0], expected, rtol=1e-9, atol=1e-12)
    written.middle = lambda x: written.conv(written.norm(written.shuffled(x)))
    expected = torch.autograd.functional.jacobian(written, x)[0, :, 0]
    torch.testing.assert_close(lrc.linear_map(model, batchnorm="fold"), expected, rtol=1e-9, atol=1e-12)


# --- neighbours -------------------------------------------------------------------------------------------------------


class OverTheBatch(Network):
    def middle(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=0, keepdim=True)


def test_answers_that_depend_on_neighbours_are_refused():
    without = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(144, 3)
    )
    for model in (without, OverTheBatch()):
        for n in (1, 2):
            some = DATA.subset(n)
            for call in (
                lambda model=model, n=n: lrc.local_map(model, X[:n]),
                lambda model=model, n=n: lrc.mean_local_map(model, X[:n]),
                lambda model=model, n=n: attacks.autoattack(model, X[:n], Y[:n], eps=0.05),
                lambda model=model, some=some: lrc.accuracy(model, some),
                lambda model=model, some=some: lrc.evaluate(model, some, attacks="fgsm", masking=False),
                lambda model=model, some=some: lrc.train(model, some, plain, epochs=1, batch_size=1),
            ):
                with pytest.raises(lrc.InputError, match="depends on the others in its batch"):
                    call()


def plain(model, x, y, *, generator):
    return F.cross_entropy(model(x), y)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*quantiz")
def test_answers_that_depend_on_neighbours_by_rounding_are_flagged():
    """Dynamic quantization scales activations by their range in the batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    net = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    with pytest.warns(RuntimeWarning, match=r"depends on the others in its batch \(by 0\.\d%\)"):
        lrc.accuracy(net, lrc.Images((100 * X).byte(), Y, ("a", "b", "c")))


def test_answers_of_their_own_are_not():
    noisy = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(192, 3))  # in train mode: draws at random
    models = [noisy, lrc.models.resnet8(width=4), *map(odd, ODD)]
    rng = torch.get_rng_state()
    for model in models:
        for x in (X, 0 * X[:1]):
            with untouched(model):
                check_independent(model, x)
    check_independent(noisy, X)
    assert torch.equal(torch.get_rng_state(), rng)
