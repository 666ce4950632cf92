"""Asking for the superclass: against hand-made logits, brute force, closed forms and an independent optimizer."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Generator, nn

from lrc.attacks import pgd, sgm
from lrc.data import Images, as_superclasses, shapes, subpopulations
from lrc.evaluation import Split, Superclasses, accuracy, confusions, evaluate, logits, per_superclass
from lrc.linearization import linear_map
from lrc.models import resnet8
from lrc.training.heads import logistic_regression, with_new_head
from lrc.utils.errors import InputError
from lrc.utils.hashes import fingerprint

GROUPS = [[0, 4], [1], [6, 2, 3, 5]]  # neither in order nor of one size
OF = torch.tensor([0, 1, 2, 2, 0, 2, 2])


def drawn(seed, *shape, scale=2.0):
    return scale * torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def asked(z, *, by, groups=GROUPS):
    return Superclasses(nn.Identity(), groups, by=by)(z)


# -- the two ways of asking ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_by_max_is_the_answer_mapped_up(seed):
    z = drawn(seed, 200, 7)
    up = asked(z, by="max")
    assert torch.equal(up.argmax(1), OF[z.argmax(1)])
    assert torch.equal(up[:, 2], z[:, [2, 3, 5, 6]].amax(1))


@pytest.mark.parametrize("seed", range(3))
def test_by_sum_adds_the_probabilities(seed):
    z = drawn(seed, 200, 7)
    summed = torch.zeros(200, 3, dtype=torch.float64).index_add_(1, OF, z.softmax(1))
    torch.testing.assert_close(asked(z, by="sum").softmax(1), summed)


def test_many_moderate_subclasses_win_by_sum_alone():
    z = torch.tensor([[2.0, 1.9, 1.9, -9.0]])
    groups = [[0, 3], [1, 2]]
    assert asked(z, by="max", groups=groups).argmax() == 0
    assert asked(z, by="sum", groups=groups).argmax() == 1


def test_a_superclass_of_one_keeps_its_logit():
    z = drawn(0, 20, 7)
    for by in ("max", "sum"):
        torch.testing.assert_close(asked(z, by=by)[:, 1], z[:, 1])
    assert torch.equal(asked(z, by="sum", groups=[[k] for k in range(7)]), z)


@pytest.mark.parametrize("by", ["max", "sum"])
def test_the_gradient_is_that_of_the_formula(by):
    z = drawn(1, 5, 7).requires_grad_()
    assert torch.autograd.gradcheck(partial(asked, by=by), z)
    (gradient,) = torch.autograd.grad(asked(z, by=by)[:, 0].sum(), z)
    own = z[:, [0, 4]]
    expected = F.one_hot(own.argmax(1), 2).double() if by == "max" else own.softmax(1)
    torch.testing.assert_close(gradient[:, [0, 4]], expected)
    assert not gradient[:, [1, 2, 3, 5, 6]].any()


@pytest.mark.parametrize("groups", [[[0, 1], [3]], [[0, 1], [1, 2]], [[0, 1, 2], []], []])
def test_groups_that_do_not_part_the_classes_are_refused(groups):
    with pytest.raises(InputError, match="once and none be empty|part 0 subclasses"):
        asked(torch.zeros(1, 3), by="max", groups=groups)


def test_groups_of_another_number_of_classes_are_refused():
    with pytest.raises(InputError, match="part 7 subclasses, the network has 8 logits"):
        asked(torch.zeros(1, 8), by="max")


def test_another_way_of_asking_is_refused():
    with pytest.raises(InputError, match="'mean'; there are max, sum"):
        asked(torch.zeros(1, 7), by="mean")


def test_answers_that_are_no_classes_are_refused(unchecked):
    y = torch.tensor([0, 1])
    for said in ([7, 0], [-5, 0]):
        with pytest.raises(InputError, match=r"predictions .*the classes are 0\.\.2"):
            confusions(torch.tensor(said), y, [[0, 1], [2]])
    assert confusions(torch.tensor([1, 1], dtype=torch.uint8), y, [[0, 1], [2]]).within == 0.5


# -- a network like any other -------------------------------------------------------------------------------------


class Conflict(nn.Module):
    """One pixel t moves the sibling up and the stranger down: logits (1, 0.9 + 4 (t - 1/2), 0.7 - 4 (t - 1/2))."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.0, 4.0, -4.0]))
        self.register_buffer("offset", torch.tensor([1.0, -1.1, 2.7]))

    def forward(self, x):
        return x.flatten(1).mean(1, keepdim=True) * self.slope + self.offset


def test_an_attack_is_aimed_at_the_superclass():
    """Closed form: at subclass labels the attack climbs to t = 0.6, where the sibling wins, and the superclass stands.

    Aimed at the superclass it descends to t = 0.4, where the stranger has 1.1 against 1.
    """
    model, groups, x, y = Conflict(), [[0, 1], [2]], torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    attack = partial(pgd, eps=0.1, steps=5, step=0.1, random_start=False)
    up = Superclasses(model, groups)
    at_subclass, at_superclass = attack(model, x, y), attack(up, x, y)
    torch.testing.assert_close(at_subclass, torch.full_like(x, 0.6))
    torch.testing.assert_close(at_superclass, torch.full_like(x, 0.4))
    assert model(at_subclass).argmax() == 1 and up(at_subclass).argmax() == 0
    assert up(at_superclass).argmax() == 1
    summed = Superclasses(model, groups, by="sum")
    assert summed(attack(summed, x, y)).argmax() == 0  # log(e + e^0.5) = 1.47 against 1.1


@pytest.fixture(scope="module")
def network():
    return resnet8(width=4, classes=7, generator=Generator().manual_seed(0))


@pytest.fixture(scope="module")
def images():
    """Random pixels of 7 classes, one with a hierarchy's superclasses: not to be learnt, only to be counted."""
    g = Generator().manual_seed(1)
    x = torch.randint(0, 256, (24, 3, 32, 32), generator=g).to(torch.uint8)
    return Images(x, torch.arange(24) % 3, ("a", "b", "c"))


def test_accuracy_and_attack_take_it(network, images):
    up, attack = Superclasses(network, GROUPS), partial(pgd, eps=8 / 255, steps=3)
    by_hand = int((OF[logits(network, images).argmax(1)] == images.y).sum()) / 24
    assert accuracy(up, images) == by_hand > 0
    assert accuracy(up, images, attack=attack, generator=Generator().manual_seed(0)) < by_hand


def test_a_whole_evaluation_takes_it_and_tells_the_two_apart(network, images, tmp_path):
    made = {by: Superclasses(network, GROUPS, by=by) for by in ("max", "sum")}
    report = evaluate(made["max"], images, attacks="pgd", eps=1 / 255, masking=False, out=tmp_path)
    assert report.accuracy("clean").value == accuracy(made["max"], images)
    other = Superclasses(network, [[0], [1, 4], [2, 3, 5, 6]])
    assert len({fingerprint(model) for model in (*made.values(), other)}) == 3
    with pytest.raises(InputError):
        evaluate(made["sum"], images, attacks="pgd", eps=1 / 255, masking=False, out=tmp_path)


@pytest.mark.parametrize("by", ["max", "sum"])
def test_attacks_that_rewrite_the_graph_take_it(network, images, by):
    x = images.float()[:2]
    x_adv = sgm(Superclasses(network, GROUPS, by=by), x, images.y[:2], eps=0.1, steps=2)
    assert 0 < (x_adv - x).abs().max() <= 0.1 + 1e-6


def test_it_adds_no_weights_and_works_in_double(network):
    up = Superclasses(copy.deepcopy(network), GROUPS, by="sum").double()
    assert set(up.state_dict()) == {f"model.{key}" for key in network.state_dict()}
    assert up.input_shape == (3, 32, 32)
    assert up(torch.zeros(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_follows_the_network_to_another_device(network, images):
    moved = copy.deepcopy(network).cuda()
    torch.testing.assert_close(
        logits(Superclasses(moved, GROUPS), images).cpu(), logits(Superclasses(network, GROUPS), images),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip
    head = with_new_head(moved, images)
    assert next(head.parameters()).is_cuda and logits(head, images).shape == (24, 3)


def test_groups_of_the_source_judge_the_target():
    source, target = subpopulations(shapes("test", n=160))
    network = resnet8(width=4, classes=len(source.classes), generator=Generator().manual_seed(0))
    up = Superclasses(network, source.hierarchy.groups())
    name_of = dict(zip(source.classes, source.hierarchy.levels[0].of, strict=True))
    said = [name_of[source.classes[k]] for k in logits(network, target).argmax(1)]
    true = [target.hierarchy.levels[0].of[k] for k in target.y]
    assert accuracy(up, as_superclasses(target)) == sum(map(int.__eq__, said, true)) / len(target)


# -- errors within and across -------------------------------------------------------------------------------------


def test_errors_are_parted_as_by_counting():
    z, y = drawn(2, 300, 7), torch.arange(300) % 7
    split = confusions(z.argmax(1), y, GROUPS)
    pairs = list(zip(z.argmax(1).tolist(), y.tolist(), strict=True))
    of = OF.tolist()
    right = sum(said == true for said, true in pairs) / 300
    within = sum(said != true and of[said] == of[true] for said, true in pairs) / 300
    across = sum(of[said] != of[true] for said, true in pairs) / 300
    assert (split.right, split.within, split.across) == pytest.approx((right, within, across))
    assert min(right, within, across) > 0
    assert split.right + split.within + split.across == pytest.approx(1)
    assert split.superclass == pytest.approx(float((asked(z, by="max").argmax(1) == OF[y]).float().mean()))


def test_errors_of_hand_made_logits():
    assert confusions(torch.arange(4), torch.tensor([0, 0, 0, 3]), [[0, 1], [2, 3]]) == Split(0.5, 0.25, 0.25)


def test_logits_that_are_not_finite_are_wrong():
    z = torch.tensor([[torch.nan, 0.0], [torch.inf, 0.0], [1.0, 0.0]])
    assert confusions(torch.tensor([-1, -1, 0]), torch.tensor([0, 0, 0]), [[0, 1]]) == Split(1 / 3, 0.0, 2 / 3)
    assert per_superclass(z, torch.tensor([0, 0, 0]))[0] == pytest.approx(1 / 3)


def test_accuracy_of_each_superclass():
    z, y = drawn(3, 90, 4), torch.arange(90) % 3
    found = per_superclass(z, y)
    expected = [float((z.argmax(1)[y == k] == k).float().mean()) for k in range(3)]
    torch.testing.assert_close(found[:3], torch.tensor(expected))
    assert found[3].isnan()


def of_said(z, y):
    return confusions(z.argmax(1), y, [[0, 1], [2]])


@pytest.mark.parametrize("judge", [of_said, per_superclass])
@pytest.mark.parametrize(
    ("y", "words"), [([0], "2 images with 1 labels"), ([0, 3], r"label 3 .*0\.\.2"), ([-1, 0], "-1")]
)
def test_labels_that_do_not_fit_are_refused(judge, y, words):
    with pytest.raises(InputError, match=words):
        judge(torch.eye(3)[:2], torch.tensor(y))


@pytest.mark.parametrize("judge", [of_said, per_superclass])
def test_no_images_are_refused(judge):
    with pytest.raises(InputError, match="one image at least"):
        judge(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))


def test_confusions_refuse_groups_of_other_classes():
    with pytest.raises(InputError, match="from 0 to 1 once"):
        confusions(torch.arange(3), torch.tensor([0, 1, 2]), [[0, 2]])


# -- a new head ---------------------------------------------------------------------------------------------------


def points(n=120, d=4, classes=3):
    """Overlapping clouds of different scales, far from the origin."""
    y = torch.arange(n) % classes
    u = drawn(4, n, d, scale=1.0) + drawn(5, classes, d, scale=1.0)[y]
    return u * torch.logspace(-1, 1, d, dtype=torch.float64) + 5, y


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_is_the_optimum_that_scipy_finds(classes):
    features, y = points(classes=classes)
    u = ((features - features.mean(0)) / features.var(0, correction=0).mean().sqrt()).numpy()
    target, weights = np.eye(classes)[y.numpy()], 4 * classes

    def loss(v):
        V, c = v[:weights].reshape(classes, 4), v[weights:]
        z = u @ V.T + c
        log_p = z - np.logaddexp.reduce(z, 1, keepdims=True)
        residual = (np.exp(log_p) - target) / len(u)
        gradient = np.concatenate([(residual.T @ u + 0.01 * V).ravel(), residual.sum(0)])
        return -(target * log_p).sum() / len(u) + 0.005 * (V**2).sum(), gradient

    best = minimize(loss, np.zeros(5 * classes), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    W, b = logistic_regression(features, y, classes=classes, l2=0.01)
    ours = features @ W.T + b
    theirs = torch.from_numpy(u @ best[:weights].reshape(classes, 4).T + best[weights:])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_the_fit_does_not_depend_on_the_scale_of_features():
    features, y = points()
    W, b = logistic_regression(features, y, classes=3)
    moved = 1e-4 * features + torch.tensor([0.0, 3.0, -7.0, 1.0])
    V, c = logistic_regression(moved, y, classes=3)
    torch.testing.assert_close(moved @ V.T + c, features @ W.T + b, rtol=0, atol=1e-4)


def test_features_that_do_not_vary_get_no_weight():
    features, y = points()
    features[:, 1] = 0.25
    assert not logistic_regression(features, y, classes=3)[0][:, 1].any()
    W, b = logistic_regression(torch.ones(6, 2), torch.tensor([0, 0, 0, 1, 1, 2]), classes=3)
    assert not W.any()
    torch.testing.assert_close(b.softmax(0), torch.tensor([3, 2, 1]).double() / 6)


def test_classes_that_can_be_parted_have_a_finite_head_and_an_absent_one_a_place():
    features = torch.tensor([[-1.0], [1.0]])
    W, b = logistic_regression(features, torch.tensor([0, 2]), classes=3)
    assert W.isfinite().all() and b.isfinite().all()
    assert (features.double() @ W.T + b).argmax(1).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"l2": 0.0}, "l2 must be above 0"),
        ({"classes": 2}, "0 to 2, expected 0..1"),
        ({"features": torch.full((120, 4), torch.nan)}, "finite values"),
    ],
)
def test_fits_that_have_no_end_are_refused(changed, words):
    features, y = points()
    with pytest.raises(InputError, match=words):
        logistic_regression(**({"features": features, "y": y, "classes": 3} | changed))


@pytest.fixture(scope="module")
def scenes():
    return as_superclasses(shapes("train", n=96))


@pytest.fixture(scope="module")
def sixteen():
    return resnet8(width=4, classes=16, generator=Generator().manual_seed(3))


def test_only_the_last_layer_is_new(sixteen, scenes):
    network = with_new_head(sixteen, scenes)
    new, old = network.state_dict(), sixteen.state_dict()
    assert new["fc.weight"].shape == (4, old["fc.weight"].shape[1]) and new["fc.bias"].shape == (4,)
    assert all(torch.equal(new[key], old[key]) for key in old if not key.startswith("fc."))
    assert not any(module.training for module in network.modules())
    assert all(p.requires_grad for p in network.parameters())
    assert tuple(linear_map(network).shape) == (4, 3, 32, 32)


def test_the_new_layer_is_the_optimum_on_what_it_sees(sixteen, scenes):
    """The gradient of the penalized loss is zero at the layer, in the features of the network itself."""
    network = with_new_head(sixteen, scenes, l2=0.01)
    with torch.no_grad():
        features = network.features(scenes.float()).double()
    spread = features.var(0, correction=0).mean().sqrt()
    W = network.fc.weight.detach().double().requires_grad_()
    b = network.fc.bias.detach().double().requires_grad_()
    loss = F.cross_entropy(features @ W.T + b, scenes.y) + 0.005 * (W * spread).square().sum()
    gradients = torch.autograd.grad(loss, (W, b))
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients)
    assert W.abs().max() > 0.1  # not the gradient of a head that says nothing


def test_the_head_is_the_same_each_time_and_better_than_chance(sixteen, scenes):
    first, second = with_new_head(sixteen, scenes), with_new_head(sixteen, scenes)
    assert fingerprint(first) == fingerprint(second)
    assert accuracy(first, scenes) > 0.5


@pytest.mark.parametrize("layers", ["head", "all"])
def test_the_network_itself_is_untouched(sixteen, scenes, layers):
    network = copy.deepcopy(sixteen).train()
    network.bn.eval()
    network.stem.requires_grad_(False)
    before, state = fingerprint(network), torch.get_rng_state()
    modes, frozen = [m.training for m in network.modules()], [p.requires_grad for p in network.parameters()]
    with_new_head(network, scenes, layers=layers, epochs=1, batch_size=32)
    assert fingerprint(network) == before and torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == frozen
    assert all(p.grad is None for p in network.parameters())


def test_all_layers_train_on_even_frozen_ones(sixteen, scenes):
    network = copy.deepcopy(sixteen)
    network.stem.requires_grad_(False)
    trained = with_new_head(network, scenes, layers="all", epochs=1, batch_size=32)
    assert not torch.equal(trained.stem.weight, sixteen.stem.weight)
    assert not torch.equal(trained.stages[0].conv1.weight, sixteen.stages[0].conv1.weight)


def test_training_of_all_layers_begins_at_the_fitted_head(scenes):
    """Without batch norm a training that hardly moves must end where it began."""
    network = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 16))
    head = with_new_head(network, scenes)
    moved = with_new_head(network, scenes, layers="all", epochs=1, batch_size=32, lr=1e-9)
    torch.testing.assert_close(logits(moved, scenes), logits(head, scenes), rtol=0, atol=1e-4)
    assert accuracy(head, scenes) > 0.5


def test_the_objective_and_the_options_reach_the_training(sixteen, scenes):
    seen = []

    def objective(model, x, y, *, generator=None):
        seen.append(len(x))
        return F.cross_entropy(model(x), y)

    fit = partial(with_new_head, sixteen, scenes, layers="all", objective=objective, epochs=2, batch_size=48)
    one = fit(seed=1)
    assert seen == [48] * 4
    assert fingerprint(one) == fingerprint(fit(seed=1)) != fingerprint(fit(seed=2))


def test_heads_that_cannot_be_are_refused(sixteen, scenes):
    with pytest.raises(InputError, match='"head" or "all", not \'last\''):
        with_new_head(sixteen, scenes, layers="last")
    with pytest.raises(InputError, match="no linear layer"):
        with_new_head(nn.Sequential(nn.AvgPool2d(32), nn.Flatten()), scenes)
    with pytest.raises(InputError, match=r"sees \(3, 4, 4\) of an image, expected a vector \(4,\)"):
        with_new_head(nn.Sequential(nn.AvgPool2d(8), nn.Linear(4, 2), nn.Flatten()), scenes)
    with pytest.raises(InputError, match="no images"):
        with_new_head(sixteen, scenes.subset(0))
