"""The one error that a user is meant to read."""


class InputError(ValueError):
    """Input that cannot be used: one line that says what is wrong, where, and how to mend it.

    >>> raise InputError("labels.npy: label 12 in row 3, expected 0..9: remove the row or add classes")
    Traceback (most recent call last):
    lrc.utils.errors.InputError: labels.npy: label 12 in row 3, expected 0..9: remove the row or add classes
    """
