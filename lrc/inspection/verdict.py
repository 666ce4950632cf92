"""The verdict: robust, only looks robust, not robust, or undecided; and what it rests on."""

from dataclasses import dataclass

from torch import nn

from lrc.data import Images
from lrc.evaluation import Report
from lrc.hierarchy import CIFAR10, Hierarchy
from lrc.inspection.around import AROUND
from lrc.inspection.causes import Tried

__all__ = ["LOCAL_CONTRAST", "Verdict", "near_chance", "reference_applies", "verdict"]

LOCAL_CONTRAST = 0.7
"""Between the contrast of the mean local map of standard and of adversarially trained small networks on CIFAR-10."""

LARGEST = 10 * 692_842  # parameters: ten times those of the largest recorded network
SHARE = 0.5  # of the clean accuracy: who keeps less is hardly called robust


@dataclass(frozen=True)
class Verdict:
    """A word and its reasons.

    Attributes:
        word: "robust", "only looks robust", "not robust" or "undecided".
        reasons: what it rests on, and what does not follow, a sentence each.
    """

    word: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.word}: {' '.join(self.reasons)}"


def near_chance(report: Report) -> bool:
    """Whether it classifies hardly better than chance."""
    return report.accuracy("clean").interval[0] <= 1.5 / len(report.classes)


def reference_applies(model: nn.Module, images: Images) -> bool:
    """Whether the recorded networks say something of this one: a network of their size for CIFAR-10 and its groups."""
    size = sum(p.numel() for p in model.parameters())
    small = images.x.shape[1:] == (3, 32, 32) and size <= LARGEST
    return small and _by_name(images.hierarchy) == _by_name(CIFAR10)


def _by_name(hierarchy: Hierarchy | None) -> set[frozenset[str]]:
    return set() if hierarchy is None else {frozenset(hierarchy.classes[k] for k in g) for g in hierarchy.groups()}


def verdict(report: Report, local: float | None, *, comparable: bool, cause: Tried | None = None) -> Verdict:
    """The verdict of an evaluation and of the contrast of the mean local map.

    - A network that classifies hardly better than chance is undecided: there is nothing to lose.
    - One that an attack brings below chance, surely, or to a tenth of its clean accuracy, is not robust. It only looks
      robust if a sign of masking is up and PGD alone would have left it more than half of its clean accuracy.
    - A sign of masking on a network that attacks leave right: undecided. It may be robust and masked.
    - One that AutoAttack leaves above chance, surely, is robust at this radius; PGD alone decides so only together
      with a mean local map that clusters as those of robust networks do, where that is known (see
      `reference_applies`). What they disagree about is undecided.

    Args:
        report: with clean accuracy, PGD, signs of masking, and AutoAttack if it was run.
        local: contrast of the mean local map between given superclasses; None without any.
        comparable: the recorded networks are a reference for this one.
        cause: why it classifies few images rightly, if that was found.
    """
    chance = 1 / len(report.classes)
    clean, worst, pgd = report.accuracy("clean"), report.accuracy(), report.accuracy("pgd")
    raised = report.raised
    by = "AutoAttack" if "autoattack" in report.attacks else "PGD-20"
    by = "all attacks" if AROUND in report.attacks else by
    against = f"{by} at {report.norm} {255 * report.eps:.3g}/255"
    if near_chance(report):
        usual = (
            "None of the usual causes explains it: normalization, the order of channels or of classes, images in "
            "0..255; are these its weights, its classes and its images?"
        )
        why = usual if cause is None else f"The likely cause: {cause}."
        return Verdict("undecided", (
            f"It classifies {clean.value:.1%} of {len(report)} images rightly, where chance gives {chance:.1%}.", why,
        ))  # fmt: skip
    found = f"{worst.value:.1%} of {len(report)} images stay right under {against}; clean, {clean.value:.1%} are."
    masked = f"Signs of gradient masking are up: {', '.join(raised)}."
    if worst.interval[1] < chance or worst.value < 0.1 * clean.value:
        if raised and pgd.value > SHARE * clean.value:
            return Verdict("only looks robust", (f"{found} PGD-20 alone leaves {pgd.value:.1%}.", masked))
        return Verdict("not robust", (found, masked if raised else "No sign of masking is up."))
    if raised:
        return Verdict("undecided", (found, f"{masked} So attacks may have found too little, and this be no bound."))
    if "autoattack" in report.attacks:
        word = "robust" if worst.interval[0] > chance else "undecided"
        return Verdict(word, (found, "That holds for this radius, these images and these attacks."))
    if worst.interval[0] <= chance:
        return Verdict("undecided", (found, "That is not clearly more than chance; more images or AutoAttack decide."))
    if local is None or not comparable:
        return Verdict("undecided", (found, "PGD alone does not decide; AutoAttack does (--attack)."))
    side = "above" if local > LOCAL_CONTRAST else "below"
    seen = f"The contrast of its mean local map, {local:.2f}, is {side} {LOCAL_CONTRAST}."
    if local > LOCAL_CONTRAST:
        return Verdict("robust", (found, seen, "No sign of masking is up; AutoAttack would make it sure."))
    return Verdict("undecided", (found, seen, "Networks robust under AutoAttack lay above it; run that (--attack)."))
