"""The one exception for a user's mistake."""


class InputError(ValueError):
    """Bad input, found before compute is spent.

    The message is one line for a person: what was given, what was expected, and how to mend it.
    Command lines print it alone, without a traceback, and leave with status 2.
    """


class MissingExtraError(InputError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: "
            f"run `pip install 'paradigms[{extra}]'`"
        )


class NonFiniteError(ArithmeticError):
    """Training produced NaN or infinity; the message names the step and where to go back to."""


class Stopped(Exception):  # noqa: N818, for it is no error
    """A run was asked to stop and has saved what it takes to go on; the message says where."""
