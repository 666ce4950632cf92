"""Evaluations: verdicts by the closed form, costs by counting, runs that are killed and go on."""

import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from attacking import Counting, Linear, Strange, boundary
from PIL import Image
from rich.console import Console
from torch import Generator, nn

import lrc
from lrc.attacks import autoattack, fgsm, pgd, square
from lrc.attacks.losses import margin
from lrc.attacks.threat_model import ball
from lrc.data import Images
from lrc.evaluation import Flag, Report, evaluate
from lrc.evaluation.evaluate import counting
from lrc.evaluation.registry import ONLY, registry
from lrc.utils.errors import InputError
from lrc.utils.files import locked

SHAPE = (3, 6, 6)
CLASSES = ("cat", "dog", "car")
EPS = 0.01
STEPS = {"pgd": partial(pgd, steps=20, random_start=False), "apgd": partial(lrc.attacks.apgd, steps=10)}
PARTS = {"fgsm": fgsm, "square": partial(square, queries=20)}


def seeded(seed=0):
    return Generator().manual_seed(seed)


def linear(n=40, wrong=5):
    """A linear model, and images of which the first few are labelled wrongly."""
    model = Linear(3, SHAPE)
    x = torch.randint(80, 176, (n, *SHAPE), generator=seeded(2)).to(torch.uint8)
    y = model(x / 255).argmax(1)
    y[:wrong] = (y[:wrong] + 1) % 3
    return model, Images(x, y, CLASSES)


def middle(model, data):
    """An eps within reach of half of the images."""
    return boundary(model, data.float(), norm="linf").median().item()


def test_verdicts_are_the_closed_form():
    model, data = linear()
    eps = middle(model, data)
    within = boundary(model, data.float(), norm="linf") < eps
    report = evaluate(model, data, attacks=STEPS, eps=eps, masking=False)
    clean = model(data.float()).argmax(1) == data.y
    assert torch.equal(report.right("clean"), clean) and clean.sum() == 35
    for name in (*STEPS, "worst case"):
        assert torch.equal(report.right(name), clean & ~within)
    assert report.labels == tuple(data.y.tolist()) and report.classes == CLASSES


def test_it_says_what_accuracy_says():
    model, data = linear(wrong=0)
    eps = middle(model, data)
    attack = partial(pgd, eps=eps, steps=3, random_start=False)
    report = evaluate(model, data, attacks={"pgd": attack}, eps=eps, masking=False)
    assert report.accuracy("pgd").value == lrc.accuracy(model, data, attack=attack)
    assert report.accuracy("clean").value == lrc.accuracy(model, data)


@pytest.mark.parametrize("name", sorted(registry(EPS)))
def test_every_name_is_an_attack(name, monkeypatch):
    """With budgets cut down; in the norm that it has."""
    small = {"steps": 3, "queries": 300, "searches": 1, "version": PARTS}

    def cheap(eps):
        attack = registry(eps)[name]
        fitting = {k: v for k, v in small.items() if k in inspect.signature(attack).parameters}
        return {name: partial(attack, **fitting)}

    monkeypatch.setattr(sys.modules["lrc.evaluation.registry"], "registry", cheap)
    model, data = linear(n=8, wrong=2)
    for norm in ("linf", "l2") if name != "autoattack" else ("linf",):
        if ONLY.get(name, norm) == norm:
            report = evaluate(model, data, attacks=name, eps=0.5, norm=norm, masking=False, generator=seeded())
            assert report.attacks == (name,) and report.results[name].cost.queries > 0
            assert report.accuracy(name).right < 6 or name in ("nes", "nattack")  # 300 queries are few for these
        else:
            with pytest.raises(InputError, match=f"no attack in {norm} is called '{name}'"):
                evaluate(model, data, attacks=name, norm=norm)


def test_only_what_is_right_is_attacked():
    model, data = linear()
    seen = []

    def spy(model, x, y, *, eps, generator):
        seen.append((len(x), eps))
        return x

    report = evaluate(model, data, attacks={"spy": spy}, eps=EPS, masking=False, batch_size=10)
    assert seen == [(10, EPS)] * 3 + [(5, EPS)]
    assert torch.equal(report.right("spy"), report.right("clean"))


def test_options_are_passed_unless_they_are_fixed_or_unknown():
    model, data = linear(n=6, wrong=0)
    seen = {}

    def some(model, x, y, *, norm, generator):
        seen["some"] = norm, generator.initial_seed() > 0
        return x

    def every(model, x, y, **options):
        seen["every"] = sorted(options)
        return x

    attacks = {"some": some, "every": every, "none": lambda model, x, y: x, "less": partial(pgd, eps=1e-6, steps=2)}
    report = evaluate(model, data, attacks=attacks, eps=0.5, norm="l2", masking=False)
    assert seen == {"some": ("l2", True), "every": ["eps", "generator", "norm"]}
    assert report.accuracy("less").right == 6


def test_costs_are_those_of_counting_by_hand():
    network, data = linear(n=30)
    model = Counting(network)
    report = evaluate(model, data, attacks={"pgd": partial(pgd, steps=4)}, eps=EPS, masking=False, batch_size=10)
    cost = report.results["pgd"].cost
    assert report.results["clean"].cost.queries == 30 and report.results["clean"].cost.forward == 3
    assert (cost.queries, cost.forward, cost.backward) == (25 * 5, 3 * 5, 3 * 4)  # four steps, and the verdict
    probe = 2 * 2  # the same image beside two others, before all: does its answer depend on them?
    assert model.images == probe + 30 + 25 * 5 and cost.seconds > 0


def test_counting_changes_nothing():
    model, data = linear()
    x, y = data.float(), data.y
    attack = partial(pgd, model, x, y, eps=EPS, steps=3)
    plain = attack(generator=seeded())
    with counting(model) as spent:
        counted = attack(generator=seeded())
    assert torch.equal(plain, counted) and (spent[0].forward, spent[0].backward, spent[0].queries) == (3, 3, 120)
    assert not model._forward_hooks and model.w.grad is None
    with pytest.raises(ZeroDivisionError), counting(model):
        raise ZeroDivisionError
    assert not model._forward_hooks


@pytest.mark.parametrize("times", [1, 0.8])
def test_autoattack_is_what_it_is_by_itself(times, tmp_path):
    """The same answers as of the function, on the images that are right; each asked about once for each part."""
    model, data = linear()
    eps = middle(model, data)
    options = {"version": PARTS, "eps": times * eps, "batch_size": 3}
    run = partial(evaluate, model, data, attacks={"aa": partial(autoattack, **options)}, eps=eps)
    report = run(masking=False, generator=seeded(), out=tmp_path)
    assert same(run(masking=False, generator=seeded()), report)
    right = report.right("clean")
    seed = (report.seed + zlib.crc32(b"aa")) % 2**63
    counted = Counting(model)
    alone = autoattack(counted, data.float()[right], data.y[right], **options, generator=seeded(seed))
    assert 0 < alone.robust_accuracy < 1
    assert report.predictions("aa")[right].tolist() == model(alone.x_adv).argmax(1).tolist()
    assert (
        report.results["aa"].cost.queries == counted.images - 35 - 4
    )  # it asks about them as they are once more, and the probe of neighbours


def test_a_part_of_a_cascade_may_not_leave_the_ball_of_the_evaluation():
    model, data = linear()
    with pytest.raises(InputError, match="fgsm left the ball of radius 0.01 in linf"):
        evaluate(model, data, attacks={"aa": partial(autoattack, version=PARTS, eps=0.02)}, eps=0.01, masking=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_count_as_fooled_and_are_counted(value):
    model, data = linear(wrong=0)
    bright = data.float().mean((1, 2, 3))
    strange = Strange(model, limit=bright.median().item(), value=value)
    report = evaluate(strange, data, attacks={"pgd": partial(pgd, steps=2)}, eps=1e-5, masking=True)
    expected = int((~strange(data.float()).isfinite().all(1)).sum())
    assert report.nonfinite("clean") == expected > 15 and report.accuracy("clean").right == 40 - expected
    assert report.nonfinite("worst case") >= expected


class Killed(Exception):
    pass


def dying(attack, after, calls):
    """The attack, until it has been called `after` times."""

    def attack_or_die(model, x, y, *, eps, generator):
        if len(calls) == after:
            raise Killed
        calls.append(len(x))
        return attack(model, x, y, eps=eps, generator=generator)

    attack_or_die.__qualname__ = "attack"
    return attack_or_die


def same(one, two):
    """Equal but for the seconds."""
    costs = [[(o.cost.queries, o.cost.forward, o.cost.backward) for o in r.results.values()] for r in (one, two)]
    said = [{name: o.predictions for name, o in r.results.items()} for r in (one, two)]
    return said[0] == said[1] and costs[0] == costs[1] and one.seed == two.seed and one.flags == two.flags


def test_a_killed_run_goes_on_from_its_last_batch(tmp_path):
    """Killed after every batch in turn, it ends as the unbroken one does, costs and all, and repeats no batch."""
    model, data = linear()
    attack = partial(pgd, steps=2)
    run = partial(evaluate, model, data, eps=middle(model, data), masking=False, batch_size=10)
    whole = run(attacks={"a": dying(attack, 99, []), "b": dying(attack, 99, [])}, generator=seeded())
    for _attempt in range(20):
        calls = []
        try:
            found = run(attacks={name: dying(attack, 1, calls) for name in "ab"}, generator=seeded(), out=tmp_path)
            break
        except Killed:
            assert len(calls) == 1
            (tmp_path / "a" / "000099.part").write_bytes(b"half a file")
    assert _attempt >= 7 and same(found, whole)  # 4 batches each
    assert Report.from_json((tmp_path / "report.json").read_text()) == found
    again = run(attacks={name: dying(attack, 0, []) for name in "ab"}, generator=seeded(), out=tmp_path)
    assert same(again, whole)  # a finished run is read, not made again


def test_a_killed_autoattack_goes_on_from_its_own_last_batch(tmp_path):
    model, data = linear()
    run = partial(evaluate, model, data, eps=middle(model, data), masking=False, batch_size=10)
    version = {name: partial(pgd, steps=2, loss=name) for name in ("ce", "margin")}

    def attacks(after):
        calls = []
        parts = {name: dying(attack, after, calls) for name, attack in version.items()}
        return {"aa": partial(autoattack, version=parts)}, calls

    whole = run(attacks=attacks(99)[0], generator=seeded())
    for _attempt in range(20):
        chosen, calls = attacks(1)
        try:
            found = run(attacks=chosen, generator=seeded(), out=tmp_path)
            break
        except Killed:
            assert len(calls) == 1
    assert _attempt >= 5 and same(found, whole)


def test_attacks_can_be_added_to_a_folder(tmp_path):
    model, data = linear()
    run = partial(evaluate, model, data, eps=EPS, out=tmp_path, masking=False)
    first = run(attacks={"a": partial(pgd, steps=1)}, generator=seeded())
    calls = []
    both = partial(evaluate, model, data, eps=EPS, generator=seeded(), out=tmp_path, masking=False)(
        attacks={"a": partial(pgd, steps=1), "b": dying(pgd, 0, calls), "c": partial(fgsm)}
        | {"b": partial(pgd, steps=2)}
    )
    assert both.attacks == ("a", "b", "c") and both.results["a"] == first.results["a"]


def test_without_a_generator_a_run_goes_on_with_its_own_seed(tmp_path):
    model, data = linear()
    run = partial(evaluate, model, data, attacks={"a": partial(pgd, steps=1)}, eps=EPS, out=tmp_path, masking=False)
    first = run()
    assert run().seed == first.seed and same(run(), first)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (dict(eps=0.02), "eps"),
        (dict(norm="l2"), "norm"),
        (dict(data=linear(n=39)[1]), "images"),
        (dict(model=Linear(3, SHAPE, seed=9)), "model"),
        (dict(model=Strange(Linear(3, SHAPE), limit=2.0)), "model"),
        (dict(attacks={"a": partial(pgd, steps=1, loss="margin")}), "attack"),
        (dict(attacks={"a": partial(pgd, steps=2)}), "attack"),
        (dict(generator=seeded(9)), "seed"),
        (dict(precision="bf16"), "precision"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, change, names):
    model, data = linear()
    arguments = dict(model=model, data=data, attacks={"a": partial(pgd, steps=1)}, eps=EPS, generator=seeded())
    evaluate(**arguments, out=tmp_path, masking=False)
    with pytest.raises(InputError, match=f"holds another run, which differs in .*{names}.*: name another folder"):
        evaluate(**{**arguments, "generator": seeded()} | change, out=tmp_path, masking=False)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_size_of_the_batches_changes_no_verdict(size):
    model, data = linear()
    run = partial(evaluate, model, data, attacks=STEPS | PARTS, eps=middle(model, data), masking=False)
    whole, parts = run(generator=seeded()), run(generator=seeded(), batch_size=size)
    assert all(whole.results[name].predictions == parts.results[name].predictions for name in whole.results)


def test_the_signs_of_masking_are_kept(tmp_path, monkeypatch):
    model, data = linear()
    run = partial(evaluate, model, data, attacks=(), eps=EPS, out=tmp_path, surrogate=model)
    first = run()
    assert len(first.flags) == 6 and "of these, transfer fools" in json.dumps([vars(f) for f in first.flags])
    monkeypatch.setattr(sys.modules["lrc.evaluation.evaluate"], "masking_flags", None)
    assert run().flags == first.flags
    assert evaluate(model, data, attacks=(), eps=EPS, masking=False).flags is None


def test_the_report_knows_the_superclasses():
    data = lrc.data.shapes("test", n=32, size=8)
    report = evaluate(Linear(16, (3, 8, 8)), data, attacks="fgsm", masking=False)
    assert (
        report.superclasses == ("house", "tree", "fish", "car")
        and report.superclass_of == (0,) * 4 + (1,) * 4 + (2,) * 4 + (3,) * 4
    )
    assert sum(rate.count for rate in report.by_superclass("fgsm")) == 32


def test_the_model_is_left_as_it_was():
    model, data = linear()
    model.train()
    state = torch.get_rng_state()
    evaluate(model, data, attacks=PARTS, eps=EPS)
    assert model.training and model.w.requires_grad and model.w.grad is None and not model._forward_hooks
    assert torch.equal(state, torch.get_rng_state())


def test_where_nothing_is_right_nothing_is_attacked():
    model, data = linear(n=6, wrong=6)
    report = evaluate(model, data, attacks=PARTS, eps=EPS)
    assert report.accuracy("worst case").right == 0 and report.flags is None
    assert report.results["fgsm"].cost.queries == 0 and Report.from_json(report.to_json()) == report


def far(model, x, y, *, eps):
    return (x + 2 * eps).clamp(0, 1)


def nothing(model, x, y):
    return None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(data=linear()[1].subset(0)), "no images to classify"),
        (dict(batch_size=0), "batch_size must be a whole number >= 1, not 0"),
        (dict(attacks="autoatack"), "no attack in linf is called 'autoatack'; there are fgsm, pgd, "),
        (dict(attacks=["pgd", "cw"]), "no attack in linf is called 'cw'"),
        (dict(attacks={"clean": pgd}), "no attack can be called 'clean'"),
        (dict(attacks={"own": 3}), "'own' and int are no name and function"),
        (dict(attacks=3), "attacks must be names, or functions by name, not int"),
        (dict(data=[1]), "images must be lrc.Images, not list"),
        (dict(model=None), "the network must be a torch.nn.Module"),
        (dict(generator=0), "generator must be a torch.Generator"),
        (dict(norm="l1", attacks=()), "no norm is called 'l1'"),
        (dict(eps=-1.0, attacks=()), "eps must be >= 0"),
        (dict(model=Linear(2, SHAPE)), "where the network has classes 0..1"),
        (dict(model=Linear(4, SHAPE)), "the network has 4 classes, the data 3"),
        (dict(attacks={"far": far}), "far left the ball of radius 0.01 in linf"),
        (dict(attacks={"nothing": nothing}), "nothing gave NoneType, not images"),
    ],
)
def test_bad_input_is_named_in_one_line(change, says, unchecked):
    model, data = linear()
    with pytest.raises(InputError, match=says) as error:
        evaluate(**dict(model=model, data=data, attacks="fgsm", eps=EPS, masking=False) | change)
    assert "\n" not in str(error.value)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    model, data = linear()
    with pytest.raises(InputError, match="file cannot be written .*: name another folder"):
        evaluate(model, data, attacks="fgsm", out=tmp_path / "file")


def test_two_evaluations_in_one_folder_are_one_too_many(tmp_path):
    """Of two that begin at once each would draw a seed of its own, and take the verdicts of the other for damage."""
    model, data = linear()
    run = partial(evaluate, model, data, attacks="fgsm", out=tmp_path, masking=False)
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path), pytest.raises(InputError, match="another process is at work in .*: wait until it ends"):
            pool.submit(run).result()
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        assert pool.submit(run).result().results.keys() == {"clean", "fgsm"}


def test_progress_is_shown_on_request(capsys):
    model, data = linear(n=6)
    evaluate(model, data, attacks={"aa": partial(autoattack, version=PARTS)}, eps=EPS, masking=False, progress=True)
    assert "aa: square" in capsys.readouterr().err


def clipping(model, x, y, *, eps, generator):
    """As many attacks end: the difference is clipped, and what is added again may lie a rounding outside."""
    x_adv = pgd(model, x, y, eps=2 * eps, steps=3, generator=generator)
    return (x + (x_adv - x).clamp(-eps, eps)).clamp(0, 1)


@pytest.mark.parametrize("eps", [8 / 255, 1e-4])
def test_an_attack_that_leaves_the_ball_by_a_rounding_is_moved_inside(eps, monkeypatch):
    model, data = linear(wrong=0)
    x_adv = clipping(model, data.float(), data.y, eps=eps, generator=seeded())
    assert not ball(data.float(), eps, "linf").contains(x_adv).all()  # so it is worth a test
    judged = []
    monkeypatch.setattr(sys.modules["lrc.attacks.common"].Victim, "verdict", spied(judged))
    evaluate(model, data, attacks={"own": clipping}, eps=eps, masking=False, batch_size=40)
    autoattack(model, data.float(), data.y, eps=eps, version={"own": clipping})
    asked = [x for x in judged if len(x) == 40]
    assert len(asked) == 4 and all(ball(data.float(), eps, "linf").contains(x).all() for x in asked)


def spied(judged):
    def logits(victim, x):
        judged.append(x)
        with torch.no_grad():
            return victim(x)

    return logits


def slightly(model, x, y, *, eps):
    return (x + 1.001 * eps).clamp(0, 1)


def test_an_attack_that_leaves_the_ball_by_more_is_refused():
    model, data = linear(wrong=0)
    for attack, norm in ((slightly, "linf"), (partial(pgd, eps=0.0101, norm="l2", steps=5), "l2")):
        with pytest.raises(InputError, match="left the ball"):
            evaluate(model, data, attacks={"own": attack}, eps=EPS, norm=norm, masking=False)
    with pytest.raises(InputError, match="left the ball"):
        evaluate(model, data, attacks={"nan": lambda model, x, y: x * torch.nan}, eps=EPS, masking=False)


def test_images_in_files_are_evaluated_as_those_in_memory(tmp_path):
    model, data = linear()
    for i, (image, label) in enumerate(zip(data.x, data.y.tolist(), strict=True)):
        (tmp_path / "in" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "in" / str(label) / f"{i:02}.png")
    files = lrc.data.folder(tmp_path / "in", size=6, workers=0)
    whole = Images((files.float() * 255).round().to(torch.uint8), files.y, files.classes)
    run = partial(evaluate, model, attacks=PARTS | {"aa": partial(autoattack, version=PARTS)}, eps=EPS)
    found = run(files, generator=seeded(), out=tmp_path / "out")
    assert same(found, run(whole, generator=seeded())) and found.images == files.digest()
    assert same(run(files, generator=seeded(), out=tmp_path / "out"), found)
    assert lrc.accuracy(nn.Sequential(nn.AvgPool2d(6), nn.Flatten()), files) >= 0  # no weights: where the labels are


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A run that is done, with all kinds of files: the folder, the call that reads them again, what it found."""
    model, data = linear(n=8, wrong=1)
    flags = (Flag("zero gradients", False, {"images": 6, "part": None}, "It moves."),)
    monkeypatch.setattr(sys.modules["lrc.evaluation.evaluate"], "masking_flags", lambda *_, **__: flags)
    attacks = {"a": partial(pgd, steps=1), "aa": partial(autoattack, version=PARTS)}
    run = partial(evaluate, model, data, attacks=attacks, eps=EPS, out=tmp_path, generator=seeded(), batch_size=4)
    return tmp_path, lambda: run(generator=seeded()), run()


def test_a_changed_byte_in_any_file_is_one_line(finished):
    """Bytes changed, lost, and added, drawn at random, in every file that is read again."""
    folder, run, found = finished
    paths = sorted(path for path in folder.rglob("*.json") if path.name != "report.json")
    kinds = {f"{path.parent.name}/{path.stem.split('-')[0]}" for path in paths}
    assert {f"{folder.name}/run", f"{folder.name}/masking", "clean/clean", "a/a", "aa/fgsm", "aa/square"} == kinds
    g = seeded()
    for path in paths:
        whole = path.read_bytes()
        for kind in range(8):
            place, bit = int(torch.randint(len(whole), (), generator=g)), int(torch.randint(8, (), generator=g))
            changed = bytearray(whole)
            if kind < 6:
                changed[place] ^= 1 << bit
            else:
                changed = changed[:place] if kind == 6 else changed[:place] + bytes([bit]) + changed[place:]
            path.write_bytes(changed)
            with pytest.raises(InputError, match=f"{path.name} is damaged") as error:
                run()
            assert "\n" not in str(error.value)
        path.write_bytes(whole)
    assert same(run(), found)


def test_verdicts_of_another_run_or_attack_are_refused(finished):
    """A batch says what it belongs to: the folder's own note may be gone, and folders may be mixed up."""
    folder, run, found = finished
    batch = next((folder / "a").glob("*.json"))
    (folder / "aa" / "mixed.json").write_bytes(batch.read_bytes())
    with pytest.raises(InputError, match="aa holds another run, which differs in attack, name"):
        run()
    (folder / "aa" / "mixed.json").unlink()
    (folder / "run.json").unlink()
    assert same(run(), found)  # the same model, images and seed: nothing is lost
    (folder / "run.json").unlink()
    with pytest.raises(InputError, match="differs in run"):
        evaluate(
            Linear(3, SHAPE, seed=9), linear(n=8, wrong=1)[1], attacks="fgsm", eps=EPS, out=folder, generator=seeded()
        )


def test_attacks_whose_names_make_one_folder_do_not_share_verdicts(tmp_path):
    model, data = linear(n=6)
    run = partial(evaluate, model, data, eps=EPS, out=tmp_path, masking=False, generator=seeded())
    run(attacks={"a b": fgsm, "..": fgsm})
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "report.json", "clean", "a_b", "_", ".lock"}
    with pytest.raises(InputError, match="a_b holds another run, which differs in name"):
        run(attacks={"a/b": fgsm}, generator=seeded())


class Secret(nn.Module):
    """Weights where nothing but its answers tells of them; random ones if `noise` is above 0."""

    def __init__(self, seed, noise=0.0):
        super().__init__()
        self.noise, network = noise, Linear(3, SHAPE, seed=seed)
        self.holder = type("Holder", (), {"network": staticmethod(network)})()

    def forward(self, x):
        return self.holder.network(x) + self.noise * torch.rand(len(x), 3)


def test_a_network_that_only_answers_tell_apart_is_refused(tmp_path):
    run = partial(evaluate, data=linear()[1], attacks="fgsm", eps=EPS, masking=False, out=tmp_path)
    found = run(Secret(0), generator=seeded())
    assert same(run(Secret(0), generator=seeded()), found)
    with pytest.raises(InputError, match="differs in answers of the model"):
        run(Secret(1), generator=seeded())
    state = torch.get_rng_state()
    run(Secret(0, noise=0.1), generator=seeded(), out=tmp_path / "random", attacks=())
    run(Secret(0, noise=0.1), generator=seeded(), out=tmp_path / "random", attacks=())
    assert not torch.equal(torch.get_rng_state(), state)  # its own draws, and they do not stop it from going on


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from functools import partial
from attacking import Linear
from torch import Generator
from lrc.attacks import autoattack, square
from lrc.data import Images
from lrc.evaluation import evaluate
model, g = Linear(3, (3, 6, 6)), Generator().manual_seed(2)
x = torch.randint(80, 176, (12, 3, 6, 6), generator=g).to(torch.uint8)
attacks = {{"aa": partial(autoattack, version={{"square": partial(square, queries=80)}})}}
evaluate(model, Images(x, model(x / 255).argmax(1), ("a", "b", "c")), attacks=attacks, eps=1e-3, batch_size=1,
         masking=False, generator=Generator().manual_seed(0), out=sys.argv[1])
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_by_the_system_it_goes_on(tmp_path):
    script = SCRIPT.format(tests=os.path.dirname(os.path.dirname(__file__)))
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script, str(tmp_path)], cwd=os.getcwd())
    deadline = time.monotonic() + 120
    while len(list(tmp_path.rglob("*-*.json"))) < 15 and time.monotonic() < deadline:  # 12 clean, some of square
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-*.json")}
    assert 15 <= len(before) < 24
    model, data = linear(n=12, wrong=0)
    attacks = {"aa": partial(autoattack, version={"square": partial(square, queries=80)})}
    run = partial(evaluate, model, Images(data.x, data.y, ("a", "b", "c")), attacks=attacks, eps=1e-3, masking=False)
    resumed = run(batch_size=1, generator=seeded(), out=tmp_path)
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    assert same(resumed, run(batch_size=1, generator=seeded()))


def test_a_run_with_functions_among_its_options_goes_on(tmp_path):
    """Made anew they lie elsewhere in memory, as they do in another process."""
    model, data = linear(n=6)

    def made():
        def loss(logits, y):
            return margin(logits, y)

        return loss

    kept = [made() for _ in range(2)]
    found = [
        evaluate(model, data, attacks={"pgd": partial(pgd, steps=1, loss=loss)}, eps=EPS, out=tmp_path, masking=False)
        for loss in kept
    ]
    assert same(*found) and all("0x" not in path.read_text() for path in tmp_path.rglob("*.json"))


def test_the_surrogate_is_looked_at_before_any_attack():
    model, data = linear(n=6)

    def never(model, x, y):
        raise AssertionError

    run = partial(evaluate, model, data, attacks={"never": never}, eps=EPS)
    with pytest.raises(InputError, match="the surrogate has 4 classes, the data 3"):
        run(surrogate=Linear(4, SHAPE))
    with pytest.raises(InputError, match="the network is on device meta, where weights have no values"):
        run(surrogate=Linear(3, SHAPE).to("meta"))


class Flat(nn.Module):
    """Says the same of every image."""

    def forward(self, x):
        return torch.tensor([[0.0, 1.0, 0.5]]).expand(len(x), 3)


def test_a_report_holds_no_nan(tmp_path):
    """The gradient's part of the change is 0 / 0, and so is the difference of logits."""
    report = evaluate(Flat(), linear()[1], attacks="fgsm", eps=EPS, out=tmp_path)
    evidence = {flag.name: flag.evidence for flag in report.flags}
    assert evidence["zero gradients"]["part of the change accounted for"] is None
    text = (tmp_path / "report.json").read_text()
    assert Report.from_json(text) == report
    json.loads(text, parse_constant=pytest.fail)
    assert same(evaluate(Flat(), linear()[1], attacks="fgsm", eps=EPS, out=tmp_path), report)
    Console(file=io.StringIO()).print(report)


def test_a_search_in_bfloat16_reaches_every_part_that_knows_it():
    """Attacks that know the option get it, others are called as ever."""
    model, data = linear()
    seen = []

    def knowing(model, x, y, *, eps, precision="float32"):
        seen.append(precision)
        return x

    def unknowing(model, x, y, *, eps):
        seen.append(None)
        return x

    parts = {"one": knowing, "two": unknowing}
    attacks = {"a": knowing, "b": unknowing, "auto": partial(autoattack, version=parts)}
    run = partial(evaluate, model, data, attacks=attacks, masking=False)
    report = run(precision="bf16")
    assert seen == ["bf16", None, "bf16", None] and report.precision == "bf16"
    assert Report.from_json(report.to_json()).precision == "bf16"
    with pytest.raises(InputError, match="precision"):
        run(precision="fp8")
