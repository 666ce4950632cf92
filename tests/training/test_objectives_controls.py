"""Controls of the clustering term: labels smoothed within superclasses, class means of features, small logits."""

import copy
import math
from functools import partial

import pytest
import torch
from test_objectives import batch, gradients, lambda_model, mean, softmax, tiny
from test_objectives_combined import GROUPS, seen
from torch import Generator, nn

from lrc import InputError
from lrc.models import build
from lrc.training.objectives import (
    METHODS,
    Objective,
    clustered,
    clustering_term,
    cross_entropy,
    feature_clustering,
    logit_penalty,
    named,
)

LIKENESS = [[0, 2], [1]]  # of four classes; the last is in no superclass
EPS = "eps=0.03137254901960784"


def by_hand(model, x_adv, y, *, share, temperature):
    """Cross-entropy to a label of which a share is spread over the members of its group, image by image."""
    q = softmax(model(x_adv) / temperature)
    values = []
    for i in range(len(y)):
        own = next((group for group in LIKENESS if y[i] in group), [int(y[i])])
        label = [(1 - share) * (k == y[i]) + share * (k in own) / len(own) for k in range(4)]
        values.append(-sum(label[k] * q[i, k].log() for k in range(4)))
    return mean(values)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_labels_are_smoothed_within_their_superclass(share, temperature):
    model, (x, y, x_adv) = tiny(), batch(8)
    ours = cross_entropy(model, x, y, x_adv, smoothing=share, groups=LIKENESS, temperature=temperature)
    theirs = by_hand(model, x_adv, y, share=share, temperature=temperature)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, model), gradients(theirs, model))


def test_a_smoothed_label_by_numbers():
    """Of p = (1/2, 1/4, 1/8, 1/8): 0.9 log 2 + 0.1 log 8, and the last class, in no superclass, log 8 as it is."""
    z = torch.tensor([[4.0, 2.0, 1.0, 1.0]]).log()
    smoothed = partial(cross_entropy, lambda_model(z), torch.zeros(1, 1), x_adv=torch.zeros(1, 1), groups=LIKENESS)
    expected = 0.9 * math.log(2) + 0.1 * math.log(8)
    assert smoothed(y=torch.tensor([0]), smoothing=0.2).item() == pytest.approx(expected)
    assert smoothed(y=torch.tensor([3]), smoothing=0.2).item() == pytest.approx(math.log(8))


@pytest.mark.parametrize("temperature", [1.0, 7.0])
def test_within_one_superclass_of_all_classes_is_over_all_classes(temperature):
    model, (x, y, x_adv) = tiny(), batch()
    smoothed = partial(cross_entropy, model, x, y, x_adv, smoothing=0.2, temperature=temperature)
    torch.testing.assert_close(smoothed(groups=[[3, 1, 0, 2]]), smoothed())
    whole = cross_entropy(model, x, y, x_adv, temperature=temperature)
    torch.testing.assert_close(smoothed(groups=[[0], [1], [2], [3]]), whole)


def test_adversarial_training_smooths_labels():
    model, (x, y, x_adv) = tiny(), batch()
    made = named("adversarial", smoothing=0.1, within=LIKENESS)
    assert made.attack.keywords == named("adversarial").attack.keywords
    expected = cross_entropy(model, x, y, x_adv, smoothing=0.1, groups=LIKENESS)
    torch.testing.assert_close(Objective(made.loss, lambda *_, generator: x_adv)(model, x, y), expected)
    plain, alike = named("label_smoothing", within=LIKENESS), named("label_smoothing", within=[(0, 2), (1,)])
    torch.testing.assert_close(plain(model, x, y), cross_entropy(model, x, y, x, smoothing=0.1, groups=LIKENESS))
    assert str(plain) == str(alike) == "Objective(loss=cross_entropy(groups=[[0, 2], [1]], smoothing=0.1))"


def test_shares_and_superclasses_that_are_none_are_refused():
    model, (x, y, x_adv) = tiny(), batch()
    for share in (-0.1, 1.5):
        with pytest.raises(InputError, match=r"smoothing.* must be (in \[0, 1\]|>= 0).*, not"):
            cross_entropy(model, x, y, x_adv, smoothing=share)
    with pytest.raises(InputError, match="each in one group"):
        cross_entropy(model, x, y, x_adv, smoothing=0.1, groups=[[0, 1], [1]])
    with pytest.raises(InputError, match="give smoothing, that share, too"):
        named("adversarial", within=LIKENESS)


def scatter_by_hand(f, y, groups):
    """Share of the scatter of class means that lies within groups, number by number."""
    found = set(y.tolist())
    mu = {k: mean(f[i] for i in range(len(f)) if y[i] == k) for k in found}
    parts = [part for group in groups if (part := [k for k in group if k in found])]
    counted = [k for part in parts for k in part]
    middle, own = mean(mu[k] for k in counted), {k: mean(mu[j] for j in part) for part in parts for k in part}
    return sum(((mu[k] - own[k]) ** 2).sum() for k in counted) / sum(((mu[k] - middle) ** 2).sum() for k in counted)


def seven(seed=0):
    """A network like `tiny`, of 7 logits, with batch norm before and a rectifier after the features."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 7)).double()
    generator = Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.double)
    return model


@pytest.mark.parametrize("groups", [[[0, 1, 3], [2, 4], [6]], [[5, 2], [0, 6, 1]], [[0, 1, 2, 3, 4, 5, 6]]])
@pytest.mark.parametrize("training", [True, False])
def test_the_term_on_features_is_their_scatter_within_superclasses(groups, training):
    """With classes absent from the batch (3) and classes in no group; gradient included."""
    model, x_adv = seven().train(training), batch(9)[2]
    y = torch.tensor([0, 0, 1, 2, 2, 4, 5, 5, 6])
    own = seen(x_adv, y, torch.zeros(9, 7, dtype=torch.double))
    before = copy.deepcopy(model.state_dict())
    ours = feature_clustering(model, own, groups=groups)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    theirs = scatter_by_hand(model[:4](x_adv), y, groups)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, model), gradients(theirs, model))
    assert 0 < ours <= 1 + 1e-12 and model.training == training and not model[4]._forward_pre_hooks


class Features(nn.Module):
    """A network whose features are given."""

    def __init__(self, features):
        super().__init__()
        self.features, self.head = features, nn.Linear(features.shape[1], 4)

    def forward(self, x):
        return self.head(self.features)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ([[0.0], [2.0], [10.0], [14.0]], (1 + 1 + 4 + 4) / (6.5**2 + 4.5**2 + 3.5**2 + 7.5**2)),
        ([[1.0], [1.0], [5.0], [5.0]], 0.0),  # only the superclasses differ
        ([[1.0], [-1.0], [1.0], [-1.0]], 1.0),  # only the classes within them differ
        ([[3.0], [3.0], [3.0], [3.0]], 0.0),  # nothing differs
        ([[0.0], [0.0], [0.0], [0.0]], 0.0),
    ],
)
def test_the_scatter_of_four_means_by_numbers(features, expected):
    """One image a class; a scale changes nothing, and the gradient stays finite."""
    y = torch.arange(4)
    for scale in (1.0, 1000.0):
        f = (scale * torch.tensor(features)).requires_grad_()
        value = feature_clustering(Features(f), seen(torch.zeros(4, 1), y), groups=GROUPS)
        assert value.item() == pytest.approx(expected, rel=1e-6)
        assert torch.autograd.grad(value, f)[0].isfinite().all()


@pytest.mark.parametrize("y", [[1, 1, 1, 1], [0, 2, 0, 2], [3, 3, 3, 3]])
def test_a_batch_without_two_classes_of_a_superclass_scatters_nothing_within(y):
    f = torch.randn(4, 3, generator=Generator().manual_seed(0)).requires_grad_()
    value = feature_clustering(Features(f), seen(torch.zeros(4, 1), torch.tensor(y)), groups=[[0, 1], [2]])
    assert value.item() == pytest.approx(0, abs=1e-6) and torch.autograd.grad(value, f)[0].isfinite().all()


def test_the_gradient_of_the_term_on_features_by_finite_differences():
    model, (x, y, _) = tiny(), batch(8)
    own = seen(x, y, torch.zeros(8, 4, dtype=torch.double))
    W, d = model[1].weight, torch.randn(6, 12, dtype=torch.double, generator=Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad(feature_clustering(model, own, groups=GROUPS), W)
    values = []
    for move in (1e-5, -2e-5):
        W.data += move * d
        values.append(feature_clustering(model, own, groups=GROUPS).item())
    assert (gradient * d).sum().item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_the_term_on_features_is_of_the_crafted_examples():
    model, (x, y, x_adv) = tiny().eval(), batch(8)
    plain = Objective(cross_entropy, lambda *_, generator: x_adv)
    value = clustered(plain, GROUPS, weight=3.0, on="features")(model, x, y)
    torch.testing.assert_close(value, plain(model, x, y) + 3 * scatter_by_hand(model[:4](x_adv), y, GROUPS))


def test_what_has_no_features_or_no_such_groups_is_refused():
    x, y, _ = batch(4)
    with pytest.raises(InputError, match="no linear layer"):
        feature_clustering(nn.Flatten(), seen(x, y), groups=GROUPS)
    with pytest.raises(InputError, match="each in one group"):
        feature_clustering(tiny(), seen(x, y), groups=[[0, 9]])
    with pytest.raises(InputError, match='"features", "logits" or "rows", not \'weights\''):
        named("standard", clustering=1.0, groups=GROUPS, on="weights")
    with pytest.raises(InputError, match="no option 'gamma'; .*on, reduction, squeezing, awp"):
        named("standard", gamma=1.0)


def test_the_penalty_on_logits_is_a_tenth_of_their_squares():
    """0.1 ((1 + 4 + 4) + (0 + 9 + 16)) / 2 = 1.7, and its gradient 0.1 z."""
    z = torch.tensor([[1.0, -2.0, 2.0], [0.0, 3.0, 4.0]], requires_grad=True)
    value = logit_penalty(tiny(), seen(torch.zeros(2, 1), torch.tensor([0, 1]), z))
    assert value.item() == pytest.approx(1.7)
    torch.testing.assert_close(torch.autograd.grad(value, z)[0], 0.1 * z)


def test_the_clustering_term_of_one_group_is_the_penalty_on_centred_logits():
    z = torch.randn(5, 7, generator=Generator().manual_seed(0), dtype=torch.double, requires_grad=True)
    centred = z - z.mean(1, keepdim=True)
    ours = clustering_term(z, [[0, 1, 2, 3, 4, 5, 6]])
    theirs = logit_penalty(tiny(), seen(torch.zeros(5, 1), torch.arange(5), centred))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(value, z, retain_graph=True)[0] for value in (ours, theirs)))
    torch.testing.assert_close(clustering_term(z + 5, [list(range(7))]), ours)


def test_squeezing_adds_the_penalty_with_its_weight():
    model, (x, y, _) = tiny().eval(), batch()
    value = named("standard", squeezing=2.0)(model, x, y)
    expected = cross_entropy(model, x, y, x) + 0.2 * sum(z**2 for z in model(x).flatten()) / len(x)
    torch.testing.assert_close(value, expected)
    both = named("standard", squeezing=2.0, clustering=0.1, groups=GROUPS)
    torch.testing.assert_close(both(model, x, y), expected + 0.1 * clustering_term(model(x), GROUPS))
    assert str(named("standard", squeezing=2.0)) == "Objective(loss=cross_entropy, terms=[[2.0, logit_penalty]])"


NAMES = {
    "standard": "Objective(loss=cross_entropy)",
    "label_smoothing": "Objective(loss=cross_entropy(smoothing=0.1))",
    "noise": "Objective(loss=cross_entropy, attack=gaussian_noise(sigma=0.25))",
    "fast": f"Objective(loss=cross_entropy, attack=fgsm({EPS}, random_start=True))",
    "adversarial": f"Objective(loss=cross_entropy, attack=pgd({EPS}, step=0.007, steps=10))",
    "trades": f"Objective(loss=trades(beta=6.0), attack=trades_attack({EPS}, loss='kl', step=0.007, steps=10))",
    "mart": f"Objective(loss=mart(beta=5.0), attack=trades_attack({EPS}, loss='ce', step=0.007, steps=10))",
    "jacobian": "Objective(loss=cross_entropy, terms=[[0.01, jacobian(projections=1)]])",
    "orthogonality": "Objective(loss=cross_entropy, terms=[[0.1, orthogonality(iterations=2)]])",
    "soft_orthogonality": "Objective(loss=cross_entropy, terms=[[0.01, soft_orthogonality]])",
    "parseval": "Objective(loss=cross_entropy, terms=[[0.003, parseval]])",
    "spectral_norm": "Objective(loss=cross_entropy, terms=[[0.01, spectral_norm(iterations=2)]])",
    "local_linearity": "Objective(loss=local_linearity(slope=3.0, weight=4.0), "
    f"attack=local_linearity_attack({EPS}, steps=2))",
    "local_flatness": "Objective(loss=local_flatness(weight=0.03137254901960784), "
    f"attack=gradient_norm_attack({EPS}, steps=2))",
    "clustr": "Objective(loss=clustr(beta=12.5, gap=1.0), "
    f"attack=trades_attack({EPS}, loss='kl', sigma=0.01568627450980392, "
    "step=0.0392156862745098, steps=1))",
    "cas": f"Objective(loss=suppressed(beta=2.0), attack=pgd({EPS}, step=0.00784313725490196, steps=10))",
    "jpeg": "Objective(loss=behind_jpeg)",
}


def test_objectives_keep_their_names():
    """A checkpoint is recognized by them, so what has a name must not get another."""
    assert {name: str(METHODS[name]()) for name in METHODS if name != "distillation"} == NAMES
    rows = str(named("adversarial", clustering=0.1, groups=GROUPS, on="rows"))
    assert rows == NAMES["adversarial"][:-1] + ", terms=[[0.1, row_clustering(groups=[[0, 1], [2, 3]])]])"
    logits = str(named("adversarial", clustering=0.1, groups=GROUPS, awp=0.01))
    term = "clustering(groups=[[0, 1], [2, 3]], reduction='sum')"
    assert logits == NAMES["adversarial"][:-1] + f", terms=[[0.1, {term}]], gamma=0.01)"


def test_noise_is_gaussian_of_its_width_and_clipped():
    x = torch.stack([torch.full((3, 32, 32), 0.5), torch.ones(3, 32, 32)])
    noised = METHODS["noise"](sigma=0.05).attack(
        nn.Identity(), x, torch.zeros(2).long(), generator=torch.Generator().manual_seed(0)
    )
    grey, white = noised
    assert abs(grey.std() - 0.05) < 5 * 0.05 / (2 * 3072) ** 0.5 and abs(grey.mean() - 0.5) < 5 * 0.05 / 3072**0.5
    assert white.max() == 1 and abs((white == 1).double().mean() - 0.5) < 5 * 0.5 / 3072**0.5


CONTROLS = [{"clustering": 1.0, "groups": GROUPS, "on": "features", "awp": 0.01}, {"squeezing": 0.1},
            {"smoothing": 0.1, "within": GROUPS}, {"smoothing": 0.1}]  # fmt: skip


@pytest.mark.parametrize("options", CONTROLS)
def test_losses_of_half_precision_networks_are_float32(options):
    model = build("resnet8", width=4, generator=Generator().manual_seed(0))
    x, y = torch.rand(8, 3, 32, 32, generator=Generator().manual_seed(1)), torch.arange(8) % 4
    objective = named("adversarial", steps=1, **options)
    values = []
    for half in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            values.append(objective(model, x, y, generator=Generator().manual_seed(2)))
    values[0].backward()
    assert values[0].dtype == torch.float32 and values[0].item() == pytest.approx(values[1].item(), rel=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_terms_are_float32_within_autocast():
    """Their own products too: the features here are the images, so that the values are as outside of it."""
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), batch(8)[0].float()
    own = seen(x, torch.arange(8) % 4, 100 + torch.randn(8, 4, generator=Generator().manual_seed(0)))
    for term in (partial(feature_clustering, groups=GROUPS), logit_penalty):
        with torch.autocast("cpu", torch.bfloat16):
            value = term(model, own)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, term(model, own), rtol=1e-6, atol=0)
