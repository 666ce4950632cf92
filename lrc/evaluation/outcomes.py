"""The parts of a report."""

from dataclasses import dataclass

from lrc.evaluation.counting import Cost
from lrc.evaluation.rates import Rate


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


@dataclass(frozen=True)
class Outcome:
    """What became of the images under one attack.

    Attributes:
        call: the attack with its options.
        said: for each image the class that the model says of what the attack made of it; -1 where its logits are NaN or
            infinite. Attacked are the images that are classified rightly as they are; the others stay what they are.
        cost: of the attack, and of asking the model once more about each image that it gave.
    """

    call: str
    said: tuple[int, ...]
    cost: Cost


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
