"""What an evaluation found: what the model says of each image, under each attack, and what follows from it."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int64
from rich.console import Group
from torch import Tensor

from lrc.evaluation.counting import Cost
from lrc.evaluation.outcomes import Comparison, Confusion, Flag, Outcome
from lrc.evaluation.rates import Rate, sign_test
from lrc.utils.errors import InputError

CLEAN, WORST = "clean", "worst case"
FORMAT = 1


@dataclass(frozen=True, repr=False)
class Report:
    """What `lrc.evaluate` found. Figures are computed from the verdicts, image by image, when asked for.

    An outcome is called by its name: "clean", that of an attack, or "worst case", in which an image counts as right
    only if it is right under all.

    Attributes:
        classes: their names.
        labels: the true class of each image.
        outcomes: by name, "clean" the first.
        eps, norm: what the attacks were allowed.
        seed: of their random choices.
        images, model: SHA-256 of the images (`lrc.data.Images.digest`) and network (`lrc.utils.hashes.fingerprint`).
        superclasses: their names; none where the data have no hierarchy.
        superclass_of: the superclass of each class, as an index.
        flags: signs of masking that were looked for; None if they were not, or no image is right to look at.
        versions: of the packages.
    """

    classes: tuple[str, ...]
    labels: tuple[int, ...]
    outcomes: dict[str, Outcome]
    eps: float
    norm: str
    seed: int
    images: str = ""
    model: str = ""
    superclasses: tuple[str, ...] = ()
    superclass_of: tuple[int, ...] = ()
    flags: tuple[Flag, ...] | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        rates = ", ".join(f"{name} {self.accuracy(name).value:.1%}" for name in self.names)
        flags = "not looked for" if self.flags is None else ", ".join(self.raised) or "none"
        return f"Report({len(self)} images, {self.norm} eps {self.eps:.4g}: {rates}; flags: {flags})"

    def __rich__(self) -> Group:
        from lrc.evaluation.tables import tables  # it needs this module

        return tables(self)

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the attacks."""
        return tuple(name for name in self.outcomes if name != CLEAN)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all outcomes: "clean", the attacks, and "worst case"."""
        return (CLEAN, *self.attacks, WORST)

    @property
    def raised(self) -> tuple[str, ...]:
        """Names of the flags that are up."""
        return tuple(flag.name for flag in self.flags or () if flag.raised)

    def said(self, name: str) -> Int64[Tensor, " n"]:
        """The class that the model says of each image, -1 for logits that are not finite.

        In the "worst case" that of the first outcome where it is wrong.

        Raises:
            InputError: no outcome of that name.
        """
        if name == WORST:
            every = torch.stack([self.said(each) for each in self.outcomes])
            first = (every != self._labels).int().argmax(0)
            return every.gather(0, first[None])[0]
        if name not in self.outcomes:
            raise InputError(f"the report has no {name!r}; there are {', '.join(self.names)}")
        return torch.tensor(self.outcomes[name].said, dtype=torch.long)

    def right(self, name: str) -> Bool[Tensor, " n"]:
        """Whether each image is classified rightly."""
        return self.said(name) == self._labels

    def accuracy(self, name: str = WORST) -> Rate:
        """How many images are classified rightly."""
        return Rate(int(self.right(name).sum()), len(self))

    def by_class(self, name: str = WORST) -> dict[str, Rate]:
        """The same for each class."""
        return _rates(self.right(name), self._labels, self.classes)

    def by_superclass(self, name: str = WORST) -> dict[str, Rate]:
        """The same for each superclass: how many of its images are given their very class; none without them."""
        if not self.superclasses:
            return {}
        return _rates(self.right(name), self._superclass_of[self._labels], self.superclasses)

    def nonfinite(self, name: str) -> int:
        """Number of images whose logits are NaN or infinite; they count as fooled."""
        return int((self.said(name) == -1).sum())

    def matrix(self, name: str) -> Int64[Tensor, "classes classes"]:
        """Number of images of class i (row) that are taken for class j, for finite logits."""
        said, k = self.said(name), len(self.classes)
        return (self._labels * k + said)[said >= 0].bincount(minlength=k * k).view(k, k)

    def confusion(self, name: str = WORST) -> Confusion:
        """Whether images that the attack fooled, and that were right before it, stay within their superclass.

        For "clean" the same of the images that are wrong as they are.

        Raises:
            InputError: the data have no superclasses.
        """
        if not self.superclasses:
            raise InputError("no superclasses to tell within from across: evaluate on data with a hierarchy")
        said, of = self.said(name), self._superclass_of
        fooled = (said != self._labels) & (said >= 0) & (self.right(CLEAN) | (name == CLEAN))
        true, wrong = self._labels[fooled], said[fooled]
        within, others = int((of[true] == of[wrong]).sum()), of.bincount()[of] - 1
        chance = others[true].double().mean().item() / max(len(of) - 1, 1) if len(true) else float("nan")
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
        """The report as JSON: what `from_json` needs, and beside it the figures, for other readers; null for 0 / 0."""
        record = {"format": FORMAT} | {name: value for name, value in vars(self).items() if name != "outcomes"}
        record["labels"] = _words(self.labels)
        record["flags"] = None if self.flags is None else [asdict(flag) for flag in self.flags]
        record["outcomes"] = {
            name: {"call": o.call, "cost": asdict(o.cost), "said": _words(o.said)} for name, o in self.outcomes.items()
        }
        record["figures"] = {name: self._figures(name) for name in self.names}
        return json.dumps(record, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str) -> "Report":
        """The report that `to_json` wrote; its figures are not read, but computed again.

        Raises:
            InputError: it is something else.
        """
        try:
            record = json.loads(text)
            if record.pop("format") != FORMAT:
                raise ValueError("of another version")
            del record["figures"]
            outcomes = {
                name: Outcome(o["call"], _numbers(o["said"]), Cost(**o["cost"]))
                for name, o in record.pop("outcomes").items()
            }
            flags, labels = record.pop("flags"), _numbers(record.pop("labels"))
            record |= {name: tuple(record[name]) for name in ("classes", "superclasses", "superclass_of")}
            record["flags"] = None if flags is None else tuple(Flag(**flag) for flag in flags)
            return Report(outcomes=outcomes, labels=labels, **record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"this is no report of lrc.evaluate ({type(error).__name__}: {error})") from error

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
        figures["by_class"] = {c: _share(r) for c, r in self.by_class(name).items()}
        if self.superclasses:
            found = self.confusion(name)
            chance = None if found.chance != found.chance else found.chance
            figures["by_superclass"] = {c: _share(r) for c, r in self.by_superclass(name).items()}
            figures["confusion"] = {"within": found.within, "across": found.across, "chance": chance}
        return figures


def _share(rate: Rate) -> float | None:
    return rate.value if rate.count else None


def _rates(right: Tensor, group: Tensor, names: tuple[str, ...]) -> dict[str, Rate]:
    count = group.bincount(minlength=len(names)).tolist()
    good = group[right].bincount(minlength=len(names)).tolist()
    return {name: Rate(r, n) for name, r, n in zip(names, good, count, strict=True)}


def _words(numbers: tuple[int, ...]) -> str:
    """Numbers in one short line, where a list of JSON would take a line for each."""
    return " ".join(map(str, numbers))


def _numbers(words: str) -> tuple[int, ...]:
    return tuple(map(int, words.split()))
