"""What ends a run: a user's mistake, divergence, a request."""

from collections.abc import Mapping
from typing import Any


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
    """Training produced NaN or infinity; the message names the step and where to go back to.

    Attributes:
      step: updates done before the dispatch that produced it.
      metrics: by name the means of that dispatch, with its updates on their first axis; none where
        it was told in another way.
    """

    def __init__(
        self, message: str, step: int = 0, metrics: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.step = step
        self.metrics = metrics or {}


class Stopped(Exception):  # noqa: N818, for it is no error
    """A run was asked to stop and has saved what it takes to go on; the message says where."""
