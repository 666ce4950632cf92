"""Evaluations: verdicts by the closed form, costs by counting, runs that are killed and go on."""

import inspect
import io
import json
import sys
from functools import partial

import pytest
import torch
from attacking import Counting, Linear, Strange, boundary
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from torch import Generator, nn

import lrc
from lrc.attacks import Verdicts, autoattack, fgsm, pgd, square
from lrc.attacks.threat_model import ball
from lrc.data import Images
from lrc.evaluation import Flag, Report, evaluate
from lrc.evaluation.choice import ONLY, attacks_by_name
from lrc.evaluation.counting import counting
from lrc.utils.errors import InputError

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


@pytest.mark.parametrize("name", sorted(attacks_by_name(EPS)))
def test_every_name_is_an_attack(name, monkeypatch):
    """With budgets cut down; in the norm that it has."""
    small = {"steps": 3, "queries": 60, "searches": 1, "version": PARTS}

    def cheap(eps):
        attack = attacks_by_name(eps)[name]
        fitting = {k: v for k, v in small.items() if k in inspect.signature(attack).parameters}
        return {name: partial(attack, **fitting)}

    monkeypatch.setattr(lrc.evaluation.choice, "attacks_by_name", cheap)
    model, data = linear(n=8, wrong=2)
    for norm in ("linf", "l2") if name != "autoattack" else ("linf",):
        if ONLY.get(name, norm) == norm:
            report = evaluate(model, data, attacks=name, eps=0.5, norm=norm, masking=False, generator=seeded())
            assert report.attacks == (name,) and report.outcomes[name].cost.queries > 0
            assert report.accuracy(name).right < 6 or name in ("nes", "nattack")  # 60 queries are few for these
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
    cost = report.outcomes["pgd"].cost
    assert report.outcomes["clean"].cost.queries == 30 and report.outcomes["clean"].cost.forward == 3
    assert (cost.queries, cost.forward, cost.backward) == (25 * 5, 3 * 5, 3 * 4)  # four steps, and the verdict
    assert model.images == 30 + 25 * 5 and cost.seconds > 0


def test_counting_changes_nothing():
    model, data = linear()
    x, y = data.float(), data.y
    attack = partial(pgd, model, x, y, eps=EPS, steps=3)
    plain = attack(generator=seeded())
    with counting(model) as meter:
        counted = attack(generator=seeded())
    assert torch.equal(plain, counted) and (meter.forward, meter.backward, meter.queries) == (3, 3, 120)
    assert not model._forward_hooks and model.w.grad is None
    with pytest.raises(ZeroDivisionError), counting(model):
        raise ZeroDivisionError
    assert not model._forward_hooks


def test_autoattack_is_what_it_is_by_itself(tmp_path):
    model, data = linear()
    eps = middle(model, data)
    alone = autoattack(model, data.float(), data.y, eps=eps, version=PARTS, generator=seeded())
    for out in (None, tmp_path):
        attacks = {"aa": partial(autoattack, version=PARTS)}
        report = evaluate(model, data, attacks=attacks, eps=eps, masking=False, out=out, generator=seeded())
        fgsm_alone = alone.accuracies["fgsm"]
        assert report.accuracy("aa").value <= fgsm_alone and report.accuracy("clean").value == alone.clean_accuracy
        assert report.outcomes["aa"].cost.queries > 35
    assert (tmp_path / "aa" / "parts" / "run.json").exists()


def test_a_verdict_of_autoattack_stands_where_the_logits_are_even():
    """On the boundary itself another size of batch may see the right class: the runner-up is what fooled it."""
    model, data = linear(n=4, wrong=0)

    def even(model, x, y, *, out=None):
        fooled_by = ("square", None, "square", None)
        return Verdicts(x.clone(), fooled_by, torch.zeros(4, dtype=torch.bool), ("clean", "square"))

    report = evaluate(model, data, attacks={"aa": even}, masking=False)
    assert report.right("aa").tolist() == [False, True, False, True]
    assert report.said("aa")[[0, 2]].tolist() == model(data.float()).topk(2).indices[[0, 2], 1].tolist()


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
    costs = [[(o.cost.queries, o.cost.forward, o.cost.backward) for o in r.outcomes.values()] for r in (one, two)]
    said = [{name: o.said for name, o in r.outcomes.items()} for r in (one, two)]
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
    assert _attempt >= 5 and found.outcomes["aa"].said == whole.outcomes["aa"].said
    spent, least = found.outcomes["aa"].cost, whole.outcomes["aa"].cost
    assert spent.backward == least.backward and spent.queries >= least.queries  # also what broken runs spent


def test_attacks_can_be_added_to_a_folder(tmp_path):
    model, data = linear()
    run = partial(evaluate, model, data, eps=EPS, out=tmp_path, masking=False)
    first = run(attacks={"a": partial(pgd, steps=1)}, generator=seeded())
    calls = []
    both = partial(evaluate, model, data, eps=EPS, generator=seeded(), out=tmp_path, masking=False)(
        attacks={"a": partial(pgd, steps=1), "b": dying(pgd, 0, calls), "c": partial(fgsm)}
        | {"b": partial(pgd, steps=2)}
    )
    assert both.attacks == ("a", "b", "c") and both.outcomes["a"] == first.outcomes["a"]


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
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, change, names):
    model, data = linear()
    arguments = dict(model=model, data=data, attacks={"a": partial(pgd, steps=1)}, eps=EPS, generator=seeded())
    evaluate(**arguments, out=tmp_path, masking=False)
    with pytest.raises(InputError, match=f"with another {names}.*: choose another folder"):
        evaluate(**{**arguments, "generator": seeded()} | change, out=tmp_path, masking=False)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_size_of_the_batches_changes_no_verdict(size):
    model, data = linear()
    run = partial(evaluate, model, data, attacks=STEPS | PARTS, eps=middle(model, data), masking=False)
    whole, parts = run(generator=seeded()), run(generator=seeded(), batch_size=size)
    assert all(whole.outcomes[name].said == parts.outcomes[name].said for name in whole.outcomes)


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
    assert sum(rate.count for rate in report.by_superclass("fgsm").values()) == 32


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
    assert report.outcomes["fgsm"].cost.queries == 0 and Report.from_json(report.to_json()) == report


def far(model, x, y, *, eps):
    return (x + 2 * eps).clamp(0, 1)


def nothing(model, x, y):
    return None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(data=linear()[1].subset(0)), "0 images"),
        (dict(batch_size=0), "batches of 0"),
        (dict(attacks="autoatack"), "no attack in linf is called 'autoatack'; there are fgsm, pgd, "),
        (dict(attacks=["pgd", "cw"]), "no attack in linf is called 'cw'"),
        (dict(attacks={"clean": pgd}), "no attack can be called 'clean'"),
        (dict(norm="l1", attacks=()), "no norm is called 'l1'"),
        (dict(eps=-1.0, attacks=()), "eps must be >= 0"),
        (dict(model=Linear(2, SHAPE)), "where the network has classes 0..1"),
        (dict(model=Linear(4, SHAPE)), "the network has 4 classes, the data 3"),
        (dict(attacks={"far": far}), "far left the ball of radius 0.01 in linf"),
        (dict(attacks={"nothing": nothing}), "nothing gave .*NoneType.*, not images"),
    ],
)
def test_bad_input_is_named_in_one_line(change, says):
    model, data = linear()
    with pytest.raises(InputError, match=says) as error:
        evaluate(**dict(model=model, data=data, attacks="fgsm", eps=EPS, masking=False) | change)
    assert "\n" not in str(error.value)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    model, data = linear()
    with pytest.raises(InputError, match="file cannot be a folder"):
        evaluate(model, data, attacks="fgsm", out=tmp_path / "file")


def test_progress_is_shown_on_request(capsys):
    model, data = linear(n=6)
    evaluate(model, data, attacks="fgsm", eps=EPS, masking=False, progress=True)
    assert "fgsm" in capsys.readouterr().out


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
    monkeypatch.setattr(sys.modules["lrc.attacks.common"].Victim, "logits", spied(judged))
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
    assert lrc.accuracy(nn.Flatten(), files) >= 0  # a network without weights: it goes where the labels are


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{"), ("run.json", "[]"), ("run.json", "{}"), ("a/run.json", ""), ("a/000001.safetensors", "x"),
        ("aa/parts/run.json", "1"), ("aa/parts/000001.safetensors", ""), ("aa/cost.json", '{"time": 1}'),
        ("masking.json", "[1]"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_in_one_line(tmp_path, name, content, monkeypatch):
    model, data = linear(n=6)
    flags = (Flag("zero gradients", False, {"images": 6, "part": None}, "It moves."),)
    monkeypatch.setattr(sys.modules["lrc.evaluation.evaluate"], "masking_flags", lambda *_, **__: flags)
    attacks = {"a": partial(pgd, steps=1), "aa": partial(autoattack, version={"a": partial(pgd, steps=1)})}
    run = partial(evaluate, model, data, attacks=attacks, eps=EPS, out=tmp_path)
    assert run().flags == run().flags == flags
    for path in (tmp_path / "aa").glob("*.safetensors"):
        path.unlink()  # as if killed just before, so that AutoAttack's own files are read again
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"{name} is damaged") as error:
        run()
    assert "\n" not in str(error.value)


def test_a_damaged_batch_does_not_pass_for_another(tmp_path):
    model, data = linear(n=6)
    run = partial(evaluate, model, data, attacks={"a": partial(pgd, steps=1)}, eps=EPS, out=tmp_path, masking=False)
    run()
    save_file({"rows": torch.arange(3)}, tmp_path / "a" / "000001.safetensors")
    with pytest.raises(InputError, match="000001.safetensors is damaged"):
        run()


def test_the_surrogate_is_looked_at_before_any_attack():
    model, data = linear(n=6)

    def never(model, x, y):
        raise AssertionError

    run = partial(evaluate, model, data, attacks={"never": never}, eps=EPS)
    with pytest.raises(InputError, match="the surrogate has 4 classes, the data 3"):
        run(surrogate=Linear(4, SHAPE))
    with pytest.raises(InputError, match="the surrogate is on meta, the network on cpu"):
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
