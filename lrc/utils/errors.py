"""The one error that a user is meant to read."""


class InputError(ValueError):
    """Input that cannot be used: one line that says what is wrong, where, and how to mend it.

    >>> raise InputError("labels.npy: label 12 in row 3, expected 0..9: remove the row or add classes")
    Traceback (most recent call last):
    lrc.utils.errors.InputError: labels.npy: label 12 in row 3, expected 0..9: remove the row or add classes
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).splitlines()))


def first_line(error: BaseException) -> str:
    """Of what another error says; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
