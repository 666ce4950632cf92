"""Measures: accuracies by counting, attacks called by hand, and images that no training has seen."""

import json
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawing import HELD, TINY, few
from torch import Generator, nn

from lrc import zoo
from lrc.attacks import fgsm, pgd
from lrc.clustering import class_correlation, contrast
from lrc.data import Images, as_superclasses, shapes
from lrc.data.sources import SOURCES
from lrc.evaluation import Superclasses, evaluate
from lrc.experiments import fitting
from lrc.experiments.studies import measures
from lrc.linearization import linear_map
from lrc.training.heads import with_new_head
from lrc.training.objectives import named
from lrc.utils.errors import InputError

EPS = 1 / 255
KINDS = ("house", "tree", "fish", "car")
KIND = {
    name: level.names[level.of[k]]
    for images in [shapes("test", n=16)]
    for level in [images.hierarchy.levels[0]]
    for k, name in enumerate(images.classes)
}
WAYS = ("max", "sum", "head", "all")


@pytest.fixture(scope="module", autouse=True)
def drawings():
    """Few drawings are made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "shapes", few)
        patch.setenv("LRC_DEVICE", "cpu")
        yield


@cache
def trained(name, labels="classes", epochs=4):
    """A recipe of a small network, and the network."""
    classes = {} if labels == "classes" else {"classes": 4}
    change = TINY | {"data": {"validation": 16, "labels": labels}, "network": {"width": 4} | classes}
    change["training"] = TINY["training"] | {"epochs": epochs}
    wanted = replace(zoo.recipe(name, change=change), eps="1/255")
    return wanted, zoo.fit(wanted)[0]


class Asked(nn.Module):
    """The largest logit of each group, group by group."""

    def __init__(self, model, groups):
        super().__init__()
        self.model, self.groups = model, groups

    def forward(self, x):
        z = self.model(x)
        return torch.stack([z[:, group].amax(1) for group in self.groups], 1)


def shown(split, *, held):
    """Images of the subclasses that are held out, or of the others; with the name of each."""
    images = few(split)
    rows = [i for i, k in enumerate(images.y.tolist()) if (images.classes[k] in HELD) == held]
    return images.x[rows] / 255, [images.classes[int(images.y[i])] for i in rows]


def shown_in_parts():
    (old, old_names), (test, test_names) = shown("train", held=True), shown("test", held=True)
    assert (len(test_names), len(old_names)) == (16, 80)
    target = torch.cat([test, old]), test_names + old_names
    return {"source": shown("test", held=False), "target": target, "official": (test, test_names)}


def mean(values):
    return sum(values) / len(values)


def told(model, x, names, *, classes):
    """Whether the class that the model says of each image has the image's superclass."""
    with torch.no_grad():
        said = model(x).argmax(1).tolist()
    return [KIND.get(classes[k], classes[k]) == KIND[name] for k, name in zip(said, names, strict=True)]


def told_attacked(network, x, names, *, steps):
    """Whether the superclass that the network says is right, when it is attacked with just that superclass as label."""
    y = torch.tensor([KINDS.index(KIND[name]) for name in names])
    x_adv = pgd(network, x, y, eps=EPS, steps=steps, step=EPS / 4, generator=Generator().manual_seed(0))
    return told(network, x_adv, names, classes=KINDS)


@pytest.fixture
def attacks(monkeypatch):
    """Of each run of PGD the number of images, and the options."""
    calls = []

    def attack(network, x, y, *, generator, **options):
        assert torch.equal(generator.get_state(), Generator().manual_seed(0).get_state())
        calls.append((len(x), options))
        return pgd(network, x, y, generator=generator, **options)

    monkeypatch.setattr(measures, "pgd", attack)
    return calls


# -- sub-populations ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(drawings):
    """The figures of a network on few drawings, and what they are of."""
    wanted, model = trained("shapes-parts-standard")
    return wanted, model, measures.subpopulations(model, wanted)


@pytest.fixture(scope="module")
def asked(measured):
    """The networks that say superclasses, by protocol."""
    wanted, model, _ = measured
    seen = fitting.split_images(wanted)[0]
    groups = seen.hierarchy.groups()
    kinds, options = as_superclasses(seen), {"batch_size": 32, "augment": False, "seed": 0}
    return {
        "max": Asked(model, groups),
        "sum": Superclasses(model, groups, by="sum"),
        "head": with_new_head(model, kinds, layers="head", **options),
        "all": with_new_head(model, kinds, layers="all", objective=named("standard"), **options),
    }


def test_superclasses_are_told_as_by_counting(measured):
    wanted, model, figures = measured
    seen, _ = measures._parts(wanted)
    assert figures["superclasses"] == KINDS
    for part, (x, names) in shown_in_parts().items():
        right = told(model, x, names, classes=seen.classes)
        assert figures[f"{part}_max"] == mean(right) and 0 < mean(right) < 1
        if part != "official":
            own = [[r for r, name in zip(right, names, strict=True) if KIND[name] == kind] for kind in KINDS]
            assert figures["by_superclass"][part] == pytest.approx([mean(some) for some in own])
    assert {*figures["by_superclass"]} == {"source", "target"}


def test_probabilities_of_subclasses_are_summed(measured):
    wanted, model, figures = measured
    seen, _ = measures._parts(wanted)
    of = torch.tensor([KINDS.index(KIND[name]) for name in seen.classes])
    for part, (x, names) in shown_in_parts().items():
        with torch.no_grad():
            p = torch.zeros(len(x), 4).index_add(1, of, model(x).softmax(1))
        right = [KINDS[k] == KIND[name] for k, name in zip(p.argmax(1).tolist(), names, strict=True)]
        assert figures[f"{part}_sum"] == mean(right)
    assert any(figures[f"{part}_sum"] != figures[f"{part}_max"] for part in shown_in_parts())


@pytest.mark.parametrize("way", ["head", "all"])
def test_new_heads_are_fitted_to_the_superclasses_of_what_was_seen(measured, asked, way):
    for part, (x, names) in shown_in_parts().items():
        assert measured[2][f"{part}_{way}"] == mean(told(asked[way], x, names, classes=KINDS))


@pytest.mark.parametrize("way", WAYS)
def test_each_attack_aims_at_the_superclass_within_the_radius_of_the_recipe(measured, asked, way):
    figures = measured[2]
    for part in ("source", "target"):
        right = told_attacked(asked[way], *shown_in_parts()[part], steps=10)
        assert figures[f"{part}_{way}_attacked"] == mean(right)
        assert 0 < figures[f"{part}_{way}_attacked"] < figures[f"{part}_{way}"]


def test_the_attack_has_ten_steps_of_a_quarter_of_the_radius(measured, asked, attacks, monkeypatch):
    """Accuracies alone would hardly tell ten steps from nine."""
    wanted, model, figures = measured
    monkeypatch.setattr(measures, "with_new_head", lambda *_, layers, **__: asked[layers])
    some = measures.subpopulations(model, wanted, images=60)
    options = {"eps": EPS, "steps": 10, "step": EPS / 4}
    assert attacks == [(48, options), (60, options)] * 4
    assert all(figures[k] == some[k] for k in figures if not (k.startswith("target") and k.endswith("attacked")))
    x, names = shown_in_parts()["target"]
    for way in WAYS:
        assert some[f"target_{way}_attacked"] == mean(told_attacked(asked[way], x[:60], names[:60], steps=10))


def apart(C, of, kind=None):
    """Mean correlation of two classes of a superclass, that kind or any, less that of one with a class of another."""
    within, across = [], []
    for i in range(len(of)):
        for j in range(len(of)):
            if i != j and kind in (None, of[i]):
                (within if of[i] == of[j] else across).append(float(C[i, j]))
    return mean(within) - mean(across)


def test_cohesion_and_contrast_by_loops_over_pairs(measured):
    wanted, model, figures = measured
    C = class_correlation(model, centre=True).double()
    seen, _ = measures._parts(wanted)
    of = [KIND[name] for name in seen.classes]
    assert figures["cohesion"] == pytest.approx([apart(C, of, kind) for kind in KINDS], abs=1e-5)
    assert figures["contrast"] == pytest.approx(apart(C, of), abs=1e-5)


def test_nothing_is_random_in_the_figures_and_the_network_stays(measured):
    wanted, model, figures = measured
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(7)
    assert measures.subpopulations(model, wanted) == figures
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert set(figures) == {
        *(f"{part}_{way}{end}" for part in ("source", "target") for way in WAYS for end in ("", "_attacked")),
        *(f"official_{way}" for way in WAYS),
        "superclasses", "by_superclass", "cohesion", "contrast",
    }  # fmt: skip


@pytest.mark.parametrize("choice", [None, 1, 2])
def test_nothing_of_the_target_is_trained_on(choice):
    change = {"data": {"validation": 16} | ({} if choice is None else {"choice": choice})}
    wanted = zoo.recipe("shapes-parts-at", change=change)
    seen, parts = measures._parts(wanted)

    def pixels(images: Images):
        return {image.numpy().tobytes() for image in images.x}

    trained_on = pixels(seen) | pixels(fitting.split_images(wanted)[1])
    assert pixels(fitting.split_images(wanted)[0]) == pixels(seen)
    assert not trained_on & (pixels(parts["target"]) | pixels(parts["official"]) | pixels(parts["source"]))
    assert not {*seen.classes} & {*parts["target"].classes} and (choice is None) == (parts["target"].classes == HELD)
    assert pixels(parts["official"]) < pixels(parts["target"])
    assert pixels(parts["official"]) <= pixels(few("test")) and pixels(parts["source"]) <= pixels(few("test"))
    everything = pixels(few("train")) | pixels(few("test"))
    assert trained_on | pixels(parts["target"]) | pixels(parts["source"]) == everything
    kinds = [images.hierarchy.levels[0].names for images in (seen, *parts.values())]
    assert len(set(kinds)) == 1


@pytest.mark.parametrize(("limit", "found"), [(10, [10, 10, 10, 10]), (20, [20, 20, 20, 16])])
def test_a_trial_measures_at_most_so_many_images(limit, found):
    wanted = zoo.recipe("shapes-parts-at", change={"data": {"validation": 16}}, limit=limit)
    seen, parts = measures._parts(wanted)
    assert [len(images) for images in (seen, *parts.values())] == found
    official = parts["official"]
    assert torch.equal(parts["target"].x[: len(official)], official.x)  # those of the test set before the others
    assert torch.equal(parts["target"].y[: len(official)], official.y)


def test_labels_of_superclasses_are_asked_as_they_are(monkeypatch):
    """A network of four logits: nothing to map up, and no classes whose correlation could cohere."""
    wanted, model = trained("shapes-parts-standard", "superclasses")
    monkeypatch.setattr(measures, "with_new_head", lambda model, *_, **__: Asked(model, [[0], [1], [2], [3]]))
    figures = measures.subpopulations(model, wanted)
    for part, (x, names) in shown_in_parts().items():
        assert figures[f"{part}_max"] == figures[f"{part}_sum"] == mean(told(model, x, names, classes=KINDS))
        if part != "official":
            assert figures[f"{part}_max_attacked"] == mean(told_attacked(model, x, names, steps=10))
    assert figures["cohesion"] is figures["contrast"] is None


def test_all_layers_are_fitted_by_the_objective_less_its_terms_on_groups(monkeypatch):
    training = TINY["training"] | {"seed": 3, "precision": "bf16"}
    wanted = zoo.recipe("shapes-parts-at-clustering", change=TINY | {"training": training})
    network, calls = fitting.untrained(wanted).eval(), []
    seen = as_superclasses(fitting.split_images(wanted)[0])

    def fitted(model, images, *, layers, objective=None, **options):
        assert model is network and torch.equal(images.x, seen.x) and torch.equal(images.y, seen.y)
        calls.append((layers, objective and str(objective), images.classes, options))
        return Asked(model, [[k, k + 1, k + 2] for k in range(0, 12, 3)])

    monkeypatch.setattr(measures, "with_new_head", fitted)
    measures.subpopulations(network, wanted, images=1)
    plain = str(zoo.objective(zoo.recipe("shapes-parts-at"), None))
    options = {"batch_size": 32, "augment": False, "precision": "bf16", "seed": 3}
    assert calls == [("head", None, KINDS, options), ("all", plain, KINDS, options)]


def test_a_recipe_that_holds_out_nothing_is_refused():
    wanted = zoo.recipe("shapes-resnet8-at", change=TINY)
    with pytest.raises(InputError, match="holds out no subclasses, it trains on bungalow, palm, puffer, racer"):
        measures.subpopulations(fitting.untrained(wanted), wanted)


# -- boosting -----------------------------------------------------------------------------------------------------


def verdicts(y):
    """What might have been said of the images under some attacks."""
    said = {}
    for i, name in enumerate(("clean", "autoattack", "pgd", "apgd-ce", "apgd-t")):
        generator = Generator().manual_seed(i)
        right, wrong = torch.rand(len(y), generator=generator) < 0.8, torch.randint(16, y.shape, generator=generator)
        said[name] = torch.where(right, y, wrong)
    said["pgd"][:5] = -1  # logits that are not finite
    return said


def parted(answers, y, classes):
    """The parts of the images that are taken for their class, another of its superclass, another superclass."""
    found = []
    for said, k in zip(answers, y.tolist(), strict=True):
        if said < 0 or KIND[classes[said]] != KIND[classes[k]]:
            found.append("across")
        else:
            found.append("right" if said == k else "within")
    return tuple(found.count(part) / len(found) for part in ("right", "within", "across"))


def first_wrong(said, y):
    return [next((a for a in answers if a != k), k) for *answers, k in zip(*said, y.tolist(), strict=True)]


def test_errors_are_parted_as_by_counting(monkeypatch):
    wanted, model = trained("shapes-resnet8-standard", epochs=8)
    test, calls = few("test"), []
    said = {name: answers.tolist() for name, answers in verdicts(test.y).items()}

    def evaluated(network, images, *, generator, **options):
        assert network is model and torch.equal(images.x, test.x)
        calls.append(options | {"seed": generator.initial_seed()})
        return SimpleNamespace(attacks=(*said,)[1:], predictions=lambda name: torch.tensor(said[name]))

    monkeypatch.setattr(measures, "evaluate", evaluated)
    figures = measures.boosting(model, wanted)
    options = {"attacks": ("pgd", "apgd-ce", "apgd-t"), "eps": EPS, "masking": False, "out": None, "seed": 0}
    assert calls == [options | {"batch_size": fitting.at_once()}]
    worst = first_wrong([answers for name, answers in said.items() if name != "autoattack"], test.y)
    assert parted(worst, test.y, test.classes) != parted(first_wrong(said.values(), test.y), test.y, test.classes)
    for name, answers in (said | {"worst": worst}).items():
        found = figures[name], figures[f"{name}_within"], figures[f"{name}_across"]
        assert found == pytest.approx(parted(answers, test.y, test.classes))
        assert all(part > 0 for part in found)
    assert figures["images"] == 64


def test_verdicts_are_those_of_the_attack_image_by_image():
    wanted, model = trained("shapes-resnet8-standard", epochs=8)
    figures = measures.verdicts(model, wanted, attacks=["fgsm"], images=40)
    some = fitting.split_images(wanted)[2].subset(40)
    x, y = some.float(), some.y
    with torch.no_grad():
        clean = model(x).argmax(1) == y
    fooled = clean & (model(fgsm(model, x, y, eps=wanted.radius)).argmax(1) != y)
    assert clean.any() and fooled.any()
    assert torch.equal(measures.unpacked(figures["right"], 40), clean & ~fooled)
    assert (figures["clean"], figures["worst"]) == pytest.approx((clean.double().mean().item(), figures["fgsm"]))


def test_robustness_is_that_of_attacks_within_the_radius_and_is_kept(tmp_path):
    wanted, model = trained("shapes-resnet8-standard", epochs=8)
    ask = {"attacks": ["pgd", "apgd-ce"], "images": 40}
    figures = measures.boosting(model, wanted, **ask, out=tmp_path / "verdicts")
    some = few("test").subset(40)
    with torch.no_grad():
        clean = model(some.float()).argmax(1).tolist()
    generator = Generator().manual_seed(0)
    report = evaluate(model, some, attacks=ask["attacks"], eps=EPS, masking=False, generator=generator)
    said = {"clean": clean} | {name: report.predictions(name).tolist() for name in ask["attacks"]}
    for name, answers in (said | {"worst": first_wrong(said.values(), some.y)}).items():
        found = figures[name], figures[f"{name}_within"], figures[f"{name}_across"]
        assert found == pytest.approx(parted(answers, some.y, some.classes))
    assert 0 < figures["worst"] < figures["clean"] and figures["images"] == 40
    kept = json.loads((tmp_path / "verdicts" / "report.json").read_text())
    assert kept["eps"] == EPS and kept["figures"]["pgd"]["accuracy"] == figures["pgd"]
    torch.manual_seed(5)
    assert measures.boosting(model, wanted, **ask) == figures
    assert set(figures) == {
        *(f"{name}{end}" for name in (*said, "worst") for end in ("", "_within", "_across")),
        "superclass_attacked", "spread", "images", "contrast",
    }  # fmt: skip


def test_superclasses_are_attacked_and_classes_contrasted(attacks):
    wanted, model = trained("shapes-resnet8-standard", epochs=8)
    test = few("test")
    figures = measures.boosting(model, wanted, attacks=["fgsm"])
    of = [KIND[name] for name in test.classes]
    groups = [[k for k, kind in enumerate(of) if kind == each] for each in KINDS]
    names = [test.classes[k] for k in test.y]
    right = told_attacked(Asked(model, groups), test.float(), names, steps=20)
    assert figures["superclass_attacked"] == mean(right)
    assert 0 < mean(right) < mean(told(model, test.float(), names, classes=test.classes))
    assert attacks == [(64, {"eps": EPS, "steps": 20, "step": EPS / 4})]
    with torch.no_grad():
        assert figures["spread"] == pytest.approx(float(model(test.float()).double().std(1).mean()), rel=1e-5)
    C = class_correlation(model, centre=True).double()
    assert figures["contrast"] == pytest.approx(apart(C, of), abs=1e-5)


def test_images_without_superclasses_are_refused_before_the_attacks(monkeypatch):
    wanted, model = trained("shapes-parts-standard", "superclasses")
    monkeypatch.setattr(measures, "evaluate", lambda *_, **__: pytest.fail("attacked"))
    with pytest.raises(InputError, match="images without superclasses"):
        measures.boosting(model, wanted)


def test_energy_of_colour_by_hand():
    flat = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])[:, :, None, None].expand(3, 3, 4, 4)
    ripple = torch.tensor([1.0, -1.0]).repeat(8).view(4, 4) * torch.tensor([1.0, 2.0, -3.0])[:, None, None, None]
    assert measures.colour_energy(flat) == pytest.approx(1)
    assert measures.colour_energy(ripple.expand(3, 3, 4, 4)) == pytest.approx(0, abs=1e-12)
    # centred colours have energy 3 * 16 * 2 / 3, the ripple 3 * 16 * 14
    assert measures.colour_energy(flat + ripple) == pytest.approx(32 / (32 + 672))
    shifted = flat + torch.rand(3, 4, 4, generator=Generator().manual_seed(0))  # the same for all classes
    assert measures.colour_energy(shifted) == pytest.approx(1)


def test_alike_is_a_correlation_over_pairs():
    C = class_correlation(torch.randn(5, 7, generator=Generator().manual_seed(0)))
    assert measures.alike(C, 3 * C + 1) == pytest.approx(1)
    assert measures.alike(C, -C) == pytest.approx(-1)
    order = torch.triu_indices(5, 5, 1)
    D = class_correlation(torch.randn(5, 7, generator=Generator().manual_seed(1)))
    expected = np.corrcoef(C[order[0], order[1]], D[order[0], order[1]])[0, 1]
    assert measures.alike(C, D) == pytest.approx(expected, abs=1e-5)


def test_maps_are_those_of_network_and_images():
    wanted, model = trained("shapes-resnet8-standard")
    found = measures.maps(model, wanted, images=20)
    rest, _, test = fitting.split_images(wanted)
    groups = rest.hierarchy.groups()
    W = linear_map(model)
    means = torch.stack([rest.float()[rest.y == k].mean(0) for k in range(16)])
    local = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), test.float()[:20]).sum(1)
    colour = W.mean((2, 3), keepdim=True)
    maps = {"": W, "_colour": colour, "_uncoloured": W - colour, "_means": means, "_local": local}
    for name, rows in maps.items():
        expected = contrast(class_correlation(rows, centre=True), groups)
        assert found[f"contrast{name}"] == pytest.approx(expected, abs=1e-4)
    assert found["means"] == pytest.approx(
        measures.alike(class_correlation(W, centre=True), class_correlation(means, centre=True)), abs=1e-4
    )


def test_clusters_adds_what_the_network_gets_right():
    wanted, model = trained("shapes-resnet8-standard")
    found = measures.clusters(model, wanted, images=30)
    some = fitting.split_images(wanted)[2].subset(30)
    assert found["clean"] == pytest.approx((model(some.float()).argmax(1) == some.y).float().mean())
    assert found["images"] == 30 and found["pgd20"] <= found["clean"]
    assert found.keys() > measures.maps(model, wanted, images=4).keys()


def test_groupings_are_by_superclass_and_across():
    wanted, model = trained("shapes-resnet8-standard")
    found = measures.groupings(model, wanted, images=64)
    some = fitting.split_images(wanted)[0].subset(64)
    means = torch.stack([some.float()[some.y == k].mean(0) for k in range(16)])
    for of, rows in {"": linear_map(model), "means_": means}.items():
        C = class_correlation(rows, centre=True)
        for name, of_class in {"superclass": lambda k: k // 4, "kind": lambda k: k % 4}.items():
            within = [C[i, j] for i in range(16) for j in range(i) if of_class(i) == of_class(j)]
            between = [C[i, j] for i in range(16) for j in range(i) if of_class(i) != of_class(j)]
            expected = sum(within) / len(within) - sum(between) / len(between)
            assert found[f"{of}by_{name}"] == pytest.approx(float(expected), abs=1e-4)
