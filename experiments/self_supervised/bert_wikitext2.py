"""BERT fills the gaps of WikiText-2, in pieces of words.

A small one, for there are two million words only: 4 layers of 256, 4,096 byte pairs, windows of 64.
No published number is comparable; the aim is to gain a nat on the cross entropy of the pieces'
frequencies in the training text.

  python -m experiments.self_supervised.bert_wikitext2        3 seeds
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import nets
from experiments import cli, texts, training
from nets.net import Net
from paradigms.core import optimizers, schedules
from paradigms.core.metrics import Means
from paradigms.core.state import TrainState, fold_name
from paradigms.data import tokens
from paradigms.self_supervised import bert, derive_language, masked_tokens

PUBLISHED = {
    "metric": "test/gain",
    "value": 1.0,
    "source": "aim: nats gained on the frequencies of the pieces",
}

_PAIRS = 4096
_MASK = "[MASK]"
_SHOWN = 8


@dataclass(frozen=True)
class Config(cli.Options):
    """Options of this experiment."""

    steps: int = 10_000
    evaluate_every: int = 1000
    batch_size: int = 32
    length: int = 64
    """Tokens of a window."""
    layers: int = 4
    width: int = 256
    dropout: float = 0.1
    rate: float = 0.15
    """Share of the tokens that are to be told."""
    learning_rate: float = 5e-4
    """Of AdamW after a tenth of the updates; it falls to 0."""
    weight_decay: float = 0.01

    def rehearsal(self) -> "Config":
        """Sums of numbers below a hundred, and their characters."""
        return replace(
            self, seeds=self.seeds[:1], steps=100, evaluate_every=50, layers=2, width=64, length=32
        )


def _vocabulary(config: Config) -> int:
    return len(texts.REHEARSED) + 1 if config.smoke else _PAIRS + 1


def network(config: Config) -> Net:
    """Tokens int `[B, T]` and which of them are valid, bool `[B, T]`, to logits `[B, T, V]`."""
    net = nets.bert(
        _vocabulary(config),
        layers=config.layers,
        heads=4,
        width=config.width,
        context=config.length + 1,
        dropout=config.dropout,
    )
    return nets.with_precision(net, config.precision)


def main(config: Config) -> None:
    """Trains on the official training text, and tests on the official test text."""
    parts = texts.load_texts(config, "wikitext2", "test", "valid")
    pieces: tokens.Tokenizer
    if config.smoke:
        pieces = tokens.Characters.train(texts.REHEARSED, [_MASK])
    else:
        pieces = tokens.Bpe.train(parts.train, _PAIRS + 1, [_MASK])
    tokens.check_vocabulary(pieces, _vocabulary(config))
    train, validation, test = map(pieces.encode, parts)
    net, mask = network(config), pieces.special[_MASK]
    schedule = schedules.warmup_cosine(
        config.learning_rate, config.steps, warmup_steps=config.steps // 10
    )
    learner = bert(
        net,
        optimizers.adamw(schedule, b2=0.98, weight_decay=config.weight_decay, max_norm=1.0),
        vocab_size=_vocabulary(config),
        mask_token=mask,
        rate=config.rate,
    )

    def fill(directory: Path, means: Means, state: TrainState) -> None:
        """Shows some windows with their gaps, and what the net puts into them."""
        del means
        tokens.save(pieces, directory / "tokenizer.json")
        shown = jnp.asarray(tokens.windows(test, config.length)[:_SHOWN])
        inputs, chosen = masked_tokens(
            fold_name(jax.random.key(0), "gaps"),
            shown,
            vocab_size=_vocabulary(config),
            mask_token=mask,
            rate=config.rate,
        )
        logits, _ = net.apply(state.params, state.model_state, inputs, jnp.ones(inputs.shape, bool))
        filled = jnp.where(chosen, logits.argmax(-1), shown)
        rows = zip(*map(np.asarray, (shown, inputs, filled)), strict=True)
        lines = ["\n".join(map(pieces.decode, row)) for row in rows]
        (directory / "gaps.txt").write_text("\n\n".join(lines) + "\n")

    frequency = np.bincount(train, minlength=_vocabulary(config)) + 1
    blind = -np.log(frequency / frequency.sum())[test].mean()

    def derive(means: Means) -> dict[str, float]:
        values = derive_language(means)
        return {**values, "gain": float(blind - values["loss"])} if "loss" in values else values

    task = texts.task(
        net,
        learner,
        train=train,
        validation=validation,
        test=test,
        batch_size=config.batch_size,
        length=config.length,
        derive=derive,
        pictures=fill,
    )
    training.train(main, config, task)


if __name__ == "__main__":
    cli.run(main, Config)
