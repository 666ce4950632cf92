"""Same run or another: what differs is named, and only what differs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrc.utils.errors import InputError
from lrc.utils.runs import differences, same_run

VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
RUNS = st.dictionaries(st.sampled_from("abcd"), VALUES | st.dictionaries(st.sampled_from("xyz"), VALUES))


@given(RUNS)
def test_a_run_is_itself(run):
    assert differences(run, dict(reversed(run.items()))) == []
    same_run(run, run, place="here")


@given(RUNS, RUNS)
def test_what_differs_does_not_depend_on_the_order(there, wanted):
    assert differences(there, wanted) == differences(wanted, there)


def test_every_entry_that_differs_is_named_and_missing_is_none():
    there = {"lr": 0.1, "data": {"name": "a", "limit": 3, "part": None}, "old": None, "stop": 1}
    wanted = {"lr": 0.2, "data": {"name": "a", "limit": 4}, "ema": None, "stop": {"after": 1}}
    with pytest.raises(InputError, match=r"^here holds another run, which differs in data.limit, lr, stop: rename it$"):
        same_run(there, wanted, place="here", mend="rename it")
