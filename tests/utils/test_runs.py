"""Same run or another: what differs is named, and only what differs."""

import pytest

from lrc.utils.errors import InputError
from lrc.utils.runs import differences, same_run

THERE = {"lr": 0.1, "data": {"name": "a", "limit": 3, "part": None}, "old": None, "stop": 1}


def test_a_run_is_itself_in_any_order():
    assert differences(THERE, dict(reversed(THERE.items()))) == []
    same_run(THERE, THERE, place="here")


def test_every_entry_that_differs_is_named_and_missing_is_none():
    wanted = {"lr": 0.2, "data": {"name": "a", "limit": 4}, "ema": None, "stop": {"after": 1}}
    with pytest.raises(InputError, match=r"^here holds another run, which differs in data.limit, lr, stop: rename it$"):
        same_run(THERE, wanted, place="here", mend="rename it")
    assert differences(wanted, THERE) == differences(THERE, wanted)
