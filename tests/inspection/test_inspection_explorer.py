"""The explorer without a front end: its widgets are set, and what it then holds is compared with direct computation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.cluster import hierarchy
from torch import Generator, nn

import lrc

pytest.importorskip("ipywidgets", reason="needs the extra `book`")


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


@pytest.fixture
def images():
    g = Generator().manual_seed(0)
    x = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=g)
    names = ("cat", "car", "dog", "bus")
    groups = lrc.hierarchy.Hierarchy.of({"animals": ["cat", "dog"], "vehicles": ["car", "bus"]}, names)
    return lrc.Images(x, torch.arange(12) % 4, names, groups)


@pytest.fixture
def models():
    return {"a": network(0), "b": network(1)}


@pytest.mark.parametrize(("name", "image", "eps", "steps"), [("a", 3, 8, 4), ("b", 11, 32, 1), ("b", 0, 0, 2)])
def test_the_attack_is_that_of_the_sliders(models, images, name, image, eps, steps):
    explorer = lrc.explore(models, images)
    for control, value in {"network": name, "image": image, "eps": eps, "steps": steps}.items():
        explorer.controls[control].value = value
    model, x, y = models[name], images.float()[image : image + 1], images.y[image : image + 1]
    seed = Generator().manual_seed(0)
    moved = lrc.attacks.pgd(model, x, y, eps=eps / 255, steps=steps, generator=seed) if eps else x
    found = explorer.attacked
    torch.testing.assert_close(found.images, torch.cat([x, moved]))
    torch.testing.assert_close(found.logits, torch.cat([model(x), model(moved)]))
    for shown, z in zip(found.saliency, (x, moved), strict=True):
        z = z.clone().requires_grad_()
        F.cross_entropy(model(z), y).backward()
        torch.testing.assert_close(shown, z.grad[0])
    every = torch.cat([model(moved), model(images.float())]).detach().numpy()
    alike = np.delete(np.corrcoef(every)[0, 1:], image)
    others = np.delete(np.arange(12), image)
    assert found.neighbours == tuple(others[np.argsort(-alike)[:5]].tolist())


def test_clusters_are_those_below_the_cut(models, images):
    explorer = lrc.explore(models, images)
    for name, model in models.items():
        explorer.controls["network"].value = name
        C = lrc.class_correlation(lrc.linear_map(model, (3, 8, 8)), centre=True)
        for height in (0.0, 0.7, 1.0, 1.3, 2.0):
            explorer.controls["height"].value = height
            labels = hierarchy.fcluster(lrc.clustering.tree(C), height, "distance")
            expected = sorted(np.flatnonzero(labels == k).tolist() for k in {*labels})
            assert explorer.clusters == expected


def test_each_control_changes_what_is_shown(models, images):
    explorer = lrc.explore(models, images)
    _, _, classes, _, attack = explorer.widget.children
    moves = [("order", "superclasses"), ("order", "as numbered"), ("height", 0.1), ("network", "b")]
    for control, value in moves:
        before = classes.value
        explorer.controls[control].value = value
        assert classes.value != before, control
    for control, value in [("image", 7), ("eps", 31), ("steps", 1), ("network", "a")]:
        before = attack.value
        explorer.controls[control].value = value
        assert attack.value != before, control


def test_names_are_text_and_a_network_without_w_can_still_be_attacked(images):
    class Squared(nn.Sequential):
        def forward(self, x):
            return super().forward(x * x)

    spelled = lrc.Images(images.x, images.y, ("<b>", "car", "dog", "bus"))
    explorer = lrc.explore(Squared(*network(0)), spelled)
    _, _, classes, _, attack = explorer.widget.children
    assert "has no W" in classes.value and "<b>" not in attack.value and "&lt;b&gt;" in attack.value
    assert "superclasses" not in explorer.controls["order"].options


def test_a_network_is_left_as_it_was(images):
    model = network(0).train()
    before = [p.clone() for p in model.parameters()]
    lrc.explore(model, images).controls["eps"].value = 3
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize(
    ("networks", "count", "said"), [({}, 12, "no network"), (network(0), 1, "two or more"), ([], 12, "no network")]
)
def test_nothing_to_explore(images, networks, count, said):
    with pytest.raises(lrc.InputError, match=said):
        lrc.explore(networks, images.subset(count))
