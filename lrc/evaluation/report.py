"""What an evaluation found: what the model says of each image, under each attack, and what follows from it."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Int64
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lrc.utils.checks import check_whole
from lrc.utils.errors import InputError
from lrc.utils.tensors import Mask

CLEAN, WORST = "clean", "worst case"
FORMAT = 2
MOST = 20  # classes that get a line each in a table


@dataclass(frozen=True)
class Cost:
    """What an attack spent.

    Attributes:
        seconds: of wall-clock time.
        queries: images that went through the network.
        forward: passes through the network, whatever the size of the batch.
        backward: passes back from its logits. One that gives all rows of a Jacobian at once, as in FAB without targets,
            counts as one, though it costs about as much as one for each class.
    """

    seconds: float = 0.0
    queries: int = 0
    forward: int = 0
    backward: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Result:
    """What became of the images under one attack.

    Attributes:
        call: the attack with its options.
        predictions: for each image the class that the model says of what the attack made of it; -1 where its logits are
            NaN or infinite. Attacked are the images that are classified rightly as they are; the others stay what they
            are.
        cost: of the attack, and of asking the model about each image that it gave.
    """

    call: str
    predictions: tuple[int, ...]
    cost: Cost


@dataclass(frozen=True)
class Flag:
    """One sign of gradient masking, looked for.

    Attributes:
        name: what was looked for; see `lrc.evaluation.masking_flags`.
        raised: whether it was found.
        evidence: the finite numbers that this rests on; None for a mean or median of nothing.
        explanation: what they mean, in a sentence or two.
    """

    name: str
    raised: bool
    evidence: dict[str, float | None]
    explanation: str


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a probability, of which `right` out of `count` trials came true; (0, 1) for none.

    Source: Wilson, *Probable inference, the law of succession, and statistical inference* (1927).

    >>> low, high = wilson(45, 100)
    >>> round(low, 3), round(high, 3)
    (0.356, 0.548)
    >>> wilson(0, 0)
    (0.0, 1.0)
    """
    from scipy.stats import binomtest  # slow to import

    if check_whole("right", right) > check_whole("count", count):
        raise InputError(f"{right} of {count} trials cannot have come true: right must be at most count")
    if count == 0:
        return 0.0, 1.0
    interval = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def sign_test(first: int, second: int) -> float:
    """Two-sided p value of `first` against `second`, if each of their sum is a toss of a fair coin.

    This is McNemar's exact test, with the images that two evaluations judge differently.

    Source: McNemar, *Note on the sampling error of the difference between correlated proportions* (1947).

    >>> sign_test(5, 5), round(sign_test(1, 9), 4), sign_test(0, 0)
    (1.0, 0.0215, 1.0)
    """
    from scipy.stats import binomtest

    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


@dataclass(frozen=True)
class Rate:
    """`right` of `count` images.

    >>> print(Rate(45, 100))
    45.0 % (35.6 to 54.8)
    """

    right: int
    count: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]; NaN of no images."""
        return self.right / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval (`wilson`)."""
        return wilson(self.right, self.count)

    @property
    def percent(self) -> str:
        """The share in percent; a dash of no images."""
        return f"{100 * self.value:.1f}" if self.count else "-"

    @property
    def percents(self) -> str:
        """The ends of the interval in percent."""
        low, high = self.interval
        return f"{100 * low:.1f} - {100 * high:.1f}" if self.count else "-"

    def __str__(self) -> str:
        return f"{self.percent} % ({self.percents.replace('-', 'to')})" if self.count else "-"


@dataclass(frozen=True)
class Confusion:
    """Where the images went that an attack moved to another class.

    Attributes:
        within: those that went to another class of their superclass.
        across: those that went to another superclass.
        chance: part that would stay within the superclass if all wrong classes were equally likely, in [0, 1].
    """

    within: int
    across: int
    chance: float

    @property
    def rate(self) -> Rate:
        """Those that stayed within, of all."""
        return Rate(self.within, self.within + self.across)


@dataclass(frozen=True)
class Comparison:
    """Two reports on the same images: how many only one of them has right, and the p value of `sign_test`."""

    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True, repr=False)
class Report:
    """What `lrc.evaluate` found. Figures are computed from the predictions, image by image, when asked for.

    A result is called by its name: "clean", that of an attack, or "worst case", in which an image counts as right only
    if it is right under all.

    Attributes:
        classes: their names.
        labels: the true class of each image.
        results: by name, "clean" the first.
        eps, norm: what the attacks were allowed.
        seed: of their random choices.
        images, model: SHA-256 of the images (`lrc.data.Images.digest`) and network (`lrc.utils.hashes.fingerprint`).
        superclasses: their names; none where the data have no hierarchy.
        superclass_of: the superclass of each class, as an index.
        flags: signs of masking that were looked for; None if they were not, or no image is right to look at.
        versions: of the packages.
        precision: of the gradients in the search; verdicts are in float32.
    """

    classes: tuple[str, ...]
    labels: tuple[int, ...]
    results: dict[str, Result]
    eps: float
    norm: str
    seed: int
    images: str = ""
    model: str = ""
    superclasses: tuple[str, ...] = ()
    superclass_of: tuple[int, ...] = ()
    flags: tuple[Flag, ...] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    precision: str = "float32"

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        rates = ", ".join(f"{name} {self.accuracy(name).value:.1%}" for name in self.names)
        flags = "not looked for" if self.flags is None else ", ".join(self.raised) or "none"
        return f"Report({len(self)} images, {self.norm} eps {self.eps:.4g}: {rates}; flags: {flags})"

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the attacks."""
        return tuple(name for name in self.results if name != CLEAN)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all results: "clean", the attacks, and "worst case"."""
        return (CLEAN, *self.attacks, WORST)

    @property
    def raised(self) -> tuple[str, ...]:
        """Names of the flags that are up."""
        return tuple(flag.name for flag in self.flags or () if flag.raised)

    def predictions(self, name: str) -> Int64[Tensor, " n"]:
        """The class that the model says of each image, -1 for logits that are not finite.

        In the "worst case" that of the first result where it is wrong.

        Raises:
            InputError: no result of that name.
        """
        if name == WORST:
            every = torch.stack([self.predictions(each) for each in self.results])
            first = (every != self._labels).int().argmax(0)
            return every.gather(0, first[None])[0]
        if name not in self.results:
            raise InputError(f"the report has no {name!r}; there are {', '.join(self.names)}")
        return torch.tensor(self.results[name].predictions, dtype=torch.long)

    def right(self, name: str) -> Mask:
        """Whether each image is classified rightly."""
        return self.predictions(name) == self._labels

    def accuracy(self, name: str = WORST) -> Rate:
        """How many images are classified rightly."""
        return Rate(int(self.right(name).sum()), len(self))

    def by_class(self, name: str = WORST) -> tuple[Rate, ...]:
        """The same for each class, in the order of `classes`."""
        return _rates(self.right(name), self._labels, len(self.classes))

    def by_superclass(self, name: str = WORST) -> tuple[Rate, ...]:
        """The same for each of `superclasses`: how many of its images are given their very class."""
        if not self.superclasses:
            return ()
        return _rates(self.right(name), self._superclass_of[self._labels], len(self.superclasses))

    def nonfinite(self, name: str) -> int:
        """Number of images whose logits are NaN or infinite; they count as fooled."""
        return int((self.predictions(name) == -1).sum())

    def matrix(self, name: str) -> Int64[Tensor, "classes classes"]:
        """Number of images of class i (row) that are taken for class j, for finite logits."""
        predicted, k = self.predictions(name), len(self.classes)
        return (self._labels * k + predicted)[predicted >= 0].bincount(minlength=k * k).view(k, k)

    def confusion(self, name: str = WORST) -> Confusion:
        """Whether images that the attack fooled, and that were right before it, stay within their superclass.

        For "clean" the same of the images that are wrong as they are.

        Raises:
            InputError: the data have no superclasses.
        """
        if not self.superclasses:
            raise InputError("no superclasses to tell within from across: evaluate on data with a hierarchy")
        predicted, of = self.predictions(name), self._superclass_of
        fooled = (predicted != self._labels) & (predicted >= 0) & (self.right(CLEAN) | (name == CLEAN))
        true, wrong = self._labels[fooled], predicted[fooled]
        within, others = int((of[true] == of[wrong]).sum()), of.bincount()[of] - 1
        chance = others[true].double().mean().item() / max(len(of) - 1, 1) if len(true) else math.nan
        return Confusion(within, len(true) - within, chance)

    def compare(self, other: "Report", name: str = WORST) -> Comparison:
        """How many images only this report has right, how many only the other, and how likely chance does that.

        Raises:
            InputError: the other report is on other images.
        """
        if (self.images, self.labels) != (other.images, other.labels):
            raise InputError("the two reports are on other images: only the same ones can be compared one by one")
        mine, theirs = self.right(name), other.right(name)
        only = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
        return Comparison(*only, sign_test(*only))

    def to_json(self) -> str:
        """The report as JSON: what `from_json` needs, and beside it the figures, for other readers; null for 0 / 0.

        Figures of classes and superclasses are lists in their order.
        """
        record: dict[str, Any] = {"format": FORMAT} | asdict(self)
        record["labels"] = words(self.labels)
        for result in record["results"].values():
            result["predictions"] = words(result["predictions"])
        record["figures"] = {name: self._figures(name) for name in self.names}
        record["sha256"] = _sha256(record)
        return json.dumps(record, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str) -> "Report":
        """The report that `to_json` wrote; its figures are not read, but computed again.

        Raises:
            InputError: it is something else, or damaged.
        """
        try:
            record = json.loads(text)
            if record["format"] != FORMAT:
                raise ValueError("of another version")
            if record.pop("sha256") != _sha256(record):
                raise ValueError("its digest is another")
            del record["figures"], record["format"]
            results, flags = record.pop("results"), record.pop("flags")
            record |= {name: tuple(record[name]) for name in ("classes", "superclasses", "superclass_of")}
            record["labels"] = numbers(record["labels"])
            record["flags"] = None if flags is None else tuple(Flag(**flag) for flag in flags)
            record["results"] = {
                name: Result(r["call"], numbers(r["predictions"]), Cost(**r["cost"])) for name, r in results.items()
            }
            return Report(**record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"this is no report of lrc.evaluate, or a damaged one ({type(error).__name__}: {error}): evaluate anew"
            ) from error

    def __rich__(self) -> Group:
        """Accuracies and costs; accuracy by superclass and class; where fooled images went; the flags."""
        parts: list[RenderableType] = [self._accuracies(), self._groups()]
        parts += [self._confusions()] if self.superclasses else []
        parts += [_flags(self.flags)] if self.flags is not None else []
        return Group(*parts)

    @property
    def _labels(self) -> Int64[Tensor, " n"]:
        return torch.tensor(self.labels, dtype=torch.long)

    @property
    def _superclass_of(self) -> Int64[Tensor, " classes"]:
        return torch.tensor(self.superclass_of, dtype=torch.long)

    def _figures(self, name: str) -> dict[str, Any]:
        rate = self.accuracy(name)
        figures: dict[str, Any] = {"accuracy": _share(rate), "interval": rate.interval}
        figures["nonfinite"] = self.nonfinite(name)
        figures["by_class"] = list(map(_share, self.by_class(name)))
        if self.superclasses:
            found = self.confusion(name)
            chance = None if math.isnan(found.chance) else found.chance
            figures["by_superclass"] = list(map(_share, self.by_superclass(name)))
            figures["confusion"] = {"within": found.within, "across": found.across, "chance": chance}
        return figures

    def _accuracies(self) -> Table:
        table = _table(
            f"{len(self)} images, {self.norm} eps {self.eps:.4g}; accuracy in % with its 95 % interval",
            ("", "accuracy", "95 %", "NaN, inf", "seconds", "queries", "forward", "backward"),
        )
        for name in self.names:
            rate = self.accuracy(name)
            cells = [name, rate.percent, rate.percents, str(self.nonfinite(name) or "-")]
            if name != WORST:
                cost = self.results[name].cost
                cells += [f"{cost.seconds:.1f}", f"{cost.queries:,}", f"{cost.forward:,}", f"{cost.backward:,}"]
            table.add_row(*cells, style="bold" if name == WORST else "")
        return table

    def _groups(self) -> Table:
        """A line for each superclass, and for each class if they are few."""
        table = _table("accuracy in %", ("superclass, class" if self.superclasses else "class", "images", *self.names))
        classes = list(zip(*(self.by_class(name) for name in self.names), strict=True))
        superclasses = list(zip(*(self.by_superclass(name) for name in self.names), strict=True))
        few = len(self.classes) <= MOST
        for group, rates in enumerate(superclasses):
            _line(table, self.superclasses[group], rates, style="bold")
            for i in [i for i, of in enumerate(self.superclass_of) if of == group and few]:
                _line(table, f"  {self.classes[i]}", classes[i])
        if not self.superclasses:
            for name, rates in list(zip(self.classes, classes, strict=True))[:MOST]:
                _line(table, name, rates)
            if not few:
                table.add_row(f"and {len(self.classes) - MOST} more")
        return table

    def _confusions(self) -> Table:
        table = _table(
            "of the images that an attack fooled: to another class of the same superclass, in %",
            ("", "fooled", "within", "95 %", "chance", "across"),
        )
        for name in self.names:
            found = self.confusion(name)
            rate, label = found.rate, "wrong as they are" if name == CLEAN else name
            chance = f"{100 * found.chance:.1f}" if rate.count else "-"
            across = Rate(found.across, rate.count).percent
            table.add_row(label, str(rate.count), rate.percent, rate.percents, chance, across)
        return table


def words(integers: tuple[int, ...]) -> str:
    """Numbers in one short line, where a list of JSON would take a line for each."""
    return " ".join(map(str, integers))


def numbers(text: str) -> tuple[int, ...]:
    """The numbers that `words` wrote."""
    return tuple(map(int, text.split()))


def _sha256(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _share(rate: Rate) -> float | None:
    return rate.value if rate.count else None


def _rates(right: Tensor, group: Tensor, groups: int) -> tuple[Rate, ...]:
    count, good = (which.bincount(minlength=groups).tolist() for which in (group, group[right]))
    return tuple(Rate(r, n) for r, n in zip(good, count, strict=True))


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _line(table: Table, name: str, rates: tuple[Rate, ...], *, style: str = "") -> None:
    table.add_row(name, str(rates[0].count), *(rate.percent for rate in rates), style=style)


def _flags(flags: tuple[Flag, ...]) -> Table:
    table = Table(title="signs of gradient masking", title_justify="left", show_lines=True)
    table.add_column("sign")
    table.add_column("evidence")
    table.add_column("which means", ratio=1)
    for flag in flags:
        evidence = "\n".join(f"{name} {_short(value)}" for name, value in flag.evidence.items())
        name = Text(f"{'! ' if flag.raised else ''}{flag.name}{'' if flag.raised else ': no'}")
        table.add_row(name, evidence, flag.explanation, style="bold red" if flag.raised else "")
    return table


def _short(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3g}"
