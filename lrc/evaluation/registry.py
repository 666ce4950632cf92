"""The attacks that have a name, each with the budget of its paper."""

from collections.abc import Iterable, Mapping
from functools import partial

from lrc.attacks import apgd, autoattack, cw, fab, fgsm, mifgsm, nattack, nes, pgd, square
from lrc.attacks.autoattack import Attack
from lrc.utils.errors import InputError

RESERVED = ("clean", "worst case")  # lines of every report
ONLY = {"fgsm": "linf", "cw": "l2"}  # the norm of those that have but one


def registry(eps: float) -> dict[str, Attack]:
    """All the attacks that have a name; "pgd" is PGD-20 with steps of eps / 4 from a random start."""
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

    Raises InputError: a name that no attack has, or none in this norm; "clean" or "worst case" as a name; no function.
    """
    if isinstance(attacks, Mapping):
        for name, attack in attacks.items():
            if name in RESERVED:
                raise InputError(f"no attack can be called {name!r}: the report has a line of that name")
            if not isinstance(name, str) or not callable(attack):
                raise InputError(f"attacks go by name, {name!r} and {type(attack).__name__} are no name and function")
        return dict(attacks)
    known = {name: attack for name, attack in registry(eps).items() if ONLY.get(name, norm) == norm}
    if not isinstance(attacks, Iterable):
        raise InputError(f"attacks must be names, or functions by name, not {type(attacks).__name__}")
    chosen = [attacks] if isinstance(attacks, str) else list(attacks)
    for name in chosen:
        if name not in known:
            raise InputError(f"no attack in {norm} is called {name!r}; there are {', '.join(known)}")
    return {name: known[name] for name in chosen}
