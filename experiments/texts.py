"""Texts for experiments: the real set, or its stand-in for a rehearsal."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import cli
from experiments.tasks import Judge, Task
from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.learner import Learner
from paradigms.core.loop import evaluator
from paradigms.core.metrics import Means
from paradigms.core.transforms import seeded, windowed
from paradigms.data import text, tokens
from paradigms.self_supervised import derive_language

# As many characters as tiny Shakespeare has, those of the sums among them.
REHEARSED = "\n+" + "".join(map(chr, range(ord("0"), ord("0") + 63)))
_SUMS = 4000


class Texts(NamedTuple):
    """Three parts of a text."""

    train: str
    validation: str
    test: str


def load_texts(config: cli.Options, name: str, held_out: str, validation: int | str) -> Texts:
    """The training, validation and test part of the text set `name`.

    Args:
      config: `--data-dir` and `--smoke`. A rehearsal takes sums of numbers below a hundred.
      name: as for `paradigms.data.text.load`.
      held_out: its split to test on.
      validation: its split to validate on, or how many characters at the start of the training text
        to hold out for that: its end goes on in the text to test on, and says most about it.
    """
    if config.smoke:
        lines = _sums(_SUMS)
        parts = np.split(np.asarray(lines), [_SUMS * 8 // 10, _SUMS * 9 // 10])
        return Texts(*("".join(part) for part in parts))
    train, test = (text.load(name, split, config.data_dir) for split in ("train", held_out))
    if isinstance(validation, str):
        return Texts(train, text.load(name, validation, config.data_dir), test)
    if not 0 < validation < len(train):
        raise InputError(
            f"--validation {validation}: expected 1 to {len(train) - 1} characters of the training "
            "text"
        )
    return Texts(train[validation:], train[:validation], test)


def task(
    net: Net,
    learner: Learner,
    *,
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    batch_size: int,
    length: int,
    derive: Callable[[Means], dict[str, float]] = derive_language,
    **options: Any,
) -> Task:
    """Learning from windows of one long text, judged by the loss on all of two others.

    Args:
      net: of the learner, tokens `[B, T]` to logits.
      learner: takes `tokens` `[B, length + 1]`.
      train: the tokens of the training text, int32 `[N]`.
      validation: likewise.
      test: likewise.
      batch_size: windows in an update.
      length: tokens that a window predicts.
      derive: see `Task`.
      **options: other fields of `Task`.
    """

    judged = seeded(learner)

    def judge(stream: np.ndarray) -> Callable[[], Judge]:
        rows = {"tokens": tokens.windows(stream, length)}
        return lambda: evaluator(judged, rows, batch_size=128)

    return Task(
        net=net,
        learner=windowed(learner, batch_size, length),
        data={"tokens": train},
        examples_per_update=batch_size * length,
        example=jax.ShapeDtypeStruct((length,), np.dtype(np.int32)),
        validation=judge(validation),
        test=judge(test),
        derive=derive,
        headline="loss",
        **options,
    )


def _sums(number: int) -> list[str]:
    """Lines such as "17+5=22", of which no other text is needed to be learnt from."""
    a, b = np.random.default_rng(0).integers(0, 100, (2, number))
    return [f"{x}+{y}={x + y}\n" for x, y in zip(a, b, strict=True)]
