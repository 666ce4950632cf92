"""Attacks by name, with the budgets that the field takes; and how any attack is called and told apart."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from lrc.attacks import Verdicts, apgd, autoattack, cw, fab, fgsm, mifgsm, nattack, nes, pgd, square
from lrc.utils.errors import InputError

Attack = Callable[..., Tensor | Verdicts]
"""`attack(model, x, y, ...) -> x_adv`, its options fixed by `functools.partial`; or one that gives `Verdicts`."""

RESERVED = ("clean", "worst case")
ONLY = {"fgsm": "linf", "cw": "l2"}  # the norm of those that have but one


def attacks_by_name(eps: float) -> dict[str, Attack]:
    """All the attacks that have a name; the budget of each is the one of its paper.

    "pgd" is PGD-20 with steps of eps / 4 from a random start, as the figures of the zoo are taken.
    """
    return {
        "fgsm": fgsm,
        "pgd": partial(pgd, steps=20, step=eps / 4),
        "pgd-margin": partial(pgd, steps=20, step=eps / 4, loss="margin"),
        "mifgsm": partial(mifgsm, steps=10),
        "apgd-ce": partial(apgd, steps=100, loss="ce"),
        "apgd-dlr": partial(apgd, steps=100, loss="dlr"),
        "apgd-t": partial(apgd, steps=100, loss="dlr", targets=9),
        "fab": partial(fab, steps=100),
        "fab-t": partial(fab, steps=100, targets=9),
        "cw": cw,
        "square": partial(square, queries=5000),
        "nes": nes,
        "nattack": nattack,
        "autoattack": autoattack,
    }


def choose(attacks: str | Iterable[str] | Mapping[str, Attack], *, eps: float, norm: str) -> dict[str, Attack]:
    """The attacks called by these names, or those given with names of their own.

    Raises:
        InputError: a name that no attack has, or none in this norm; "clean" or "worst case" as a name.
    """
    if isinstance(attacks, Mapping):
        if taken := [name for name in attacks if name in RESERVED]:
            raise InputError(f"no attack can be called {taken[0]!r}: the report has a line of that name")
        return dict(attacks)
    known = {name: attack for name, attack in attacks_by_name(eps).items() if ONLY.get(name, norm) == norm}
    chosen = [attacks] if isinstance(attacks, str) else list(attacks)
    for name in chosen:
        if name not in known:
            raise InputError(f"no attack in {norm} is called {name!r}; there are {', '.join(known)}")
    return {name: known[name] for name in chosen}


def accepted(attack: Attack, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the offered options that the function has, and that `functools.partial` has not fixed in it.

    >>> accepted(partial(pgd, eps=0.1), {"eps": 0.5, "norm": "l2", "out": None})
    {'norm': 'l2'}
    """
    parameters = inspect.signature(attack).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    fixed = getattr(attack, "keywords", {})
    return {k: v for k, v in offered.items() if (anything or k in parameters) and k not in fixed}


def resumes(attack: Attack) -> bool:
    """Whether the attack keeps in a folder `out` what it has finished, and so wants all images at once."""
    return "out" in inspect.signature(attack).parameters
