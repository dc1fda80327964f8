"""What the experiments in self-supervised learning share: how good the features are, and for what.

They are judged frozen, and where an experiment asks for it as the start of training with labels.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import nets
from experiments import tasks, training
from experiments.tasks import Judge
from nets.net import Net
from paradigms import data
from paradigms.core import optimizers, schedules
from paradigms.core.learner import Learner, Metrics
from paradigms.core.loop import evaluator, fit
from paradigms.core.metrics import Mean, Means, derive
from paradigms.core.pictures import draw_classes
from paradigms.core.state import PyTree, TrainState
from paradigms.core.transforms import accumulated, repeated, resident, seeded
from paradigms.data.augment import Augmentation
from paradigms.data.cache import Data
from paradigms.self_supervised import knn, linear_probe, logistic_probe
from paradigms.supervised import classifier

_CHUNK = 500  # images that go through a net at once
_PICTURED = 500
_EPSILON = 1e-6

Scores = dict[str, float]
Weights = dict[str, PyTree]


class FineTuning(NamedTuple):
    """How a whole net, with a new linear layer on it, is trained with labels.

    Attributes:
      steps: updates by AdamW.
      batch_size: of the minibatch.
      learning_rate: after a warm-up over a twentieth of the steps; it falls to 0 by a cosine.
      weight_decay: of the matrices.
      augment: `(key, image) -> image`.
      accumulate: parts of a minibatch whose gradients are taken in turn.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    augment: Augmentation
    accumulate: int = 1


class Protocol(NamedTuple):
    """How features are judged; the numbers belong to what is reported.

    Attributes:
      classes: number of classes.
      k: neighbours that vote.
      temperature: of their votes.
      labels_per_class: of the few-label probe.
      draws: of those labels, over which its accuracy is averaged.
      rates: learning rates of the linear probe, to choose from on validation data.
      fine_tuning: how the net is trained on with all labels; None to leave it.
    """

    classes: int = 10
    k: int = 200
    temperature: float = 0.1
    labels_per_class: int = 4
    draws: int = 10
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    fine_tuning: FineTuning | None = None


def task(
    net: Net,
    learner: Learner,
    part: str,
    *,
    train: Data,
    validation: Data,
    test: Data,
    batch_size: int,
    protocol: Protocol,
    pictures: Callable[[Path, TrainState, np.ndarray], None] | None = None,
    sees: tuple[str, ...] = ("image",),
) -> tasks.Task:
    """Learning without labels, judged by what labels then make of the features.

    `knn` is the accuracy of neighbours among the training images, `few_label_probe` that of
    logistic regression on few of their labels: on validation images during training, where step 0
    shows what an untrained net can do, and on test images, once, at the end. Then comes
    `linear_probe`, with all labels, and `knn_gain`, what `knn` has gained over the same net before
    training; with `fine_tuning`, the accuracy `fine_tuned` of the whole net after it, and
    `fine_tuning_gain`, over the same training from where the net began. What the learner evaluates
    is added.

    Args:
      net: raw images to features `[B, D]`, in evaluation.
      learner: one run.
      part: the name of the net's weights among those of the learner.
      train: labelled images, of which the learner sees what `sees` says.
      validation: held-out images.
      test: likewise.
      batch_size: of the global minibatch.
      protocol: see there.
      pictures: draws into a directory, besides the embeddings, from the final state of the first
        run and some test images.
      sees: the entries of the data that the learner gets.
    """

    def weights(state: TrainState) -> Weights:
        return {"params": state.params[part], "model_state": state.model_state[part]}

    def seen_of(images: Data) -> Data:
        return {name: images[name] for name in sees}

    features, drawn = _extractor(net), resident(learner, batch_size)
    evaluated, size = seeded(learner), tasks.judged_at_once(validation, test)

    def weights_of(state: TrainState, run: int) -> Weights:
        return jax.tree.map(lambda leaf: leaf[run], weights(state))

    def judge(held_out: Data, score: Callable[[TrainState, int], Scores]) -> Judge:
        evaluate = evaluator(evaluated, seen_of(held_out), batch_size=size)

        def judged(state: TrainState, key: jax.Array) -> Metrics:
            metrics = dict(evaluate(state, key))
            runs = len(state.key)
            scores = [score(state, run) for run in range(runs)]
            for name in scores[0]:
                values = jnp.asarray([of_run[name] for of_run in scores])
                metrics[name] = Mean(values, jnp.ones_like(values))
            return metrics

        return judged

    def neighbours(seen: Data, asked: Data) -> float:
        votes = knn(
            jnp.asarray(seen["feature"]),
            jnp.asarray(seen["label"]),
            jnp.asarray(asked["feature"]),
            protocol.classes,
            k=protocol.k,
            temperature=protocol.temperature,
        )
        return _accuracy(votes, asked)

    def few_labels(seen: Data, asked: Data) -> float:
        accuracies = []
        for draw in range(protocol.draws):
            labelled = data.few_labels(seen, protocol.labels_per_class, seed=draw)
            probe = logistic_probe(
                jnp.asarray(labelled["feature"]),
                jnp.asarray(labelled["label"]),
                protocol.classes,
                standardise=False,
            )
            accuracies.append(_accuracy(probe.logits(jnp.asarray(asked["feature"])), asked))
        return float(np.mean(accuracies))

    def quickly(state: TrainState, run: int) -> Scores:
        of = features(weights_of(state, run))
        seen, tried = (_described(of, images) for images in (train, validation))
        return {
            "knn": neighbours(seen, tried),
            "few_label_probe": few_labels(*_standardised(seen, tried)),
        }

    start = jax.jit(seeded(drawn).init)

    def thoroughly(state: TrainState, run: int) -> Scores:
        trained = weights_of(state, run)
        # What a run began with is a function of its key.
        untrained = weights_of(start(state.key[run : run + 1], seen_of(train)), 0)
        of, of_untrained = features(trained), features(untrained)
        seen, tried, asked = (_described(of, images) for images in (train, validation, test))
        before = neighbours(*(_described(of_untrained, images) for images in (train, test)))
        scores = {"knn": neighbours(seen, asked)}
        scores["knn_gain"] = scores["knn"] - before
        seen, tried, asked = _standardised(seen, tried, asked)
        probe, _ = linear_probe(
            jax.random.key(0),
            seen,
            tried,
            protocol.classes,
            learning_rates=protocol.rates,
            standardise=False,
        )
        scores["few_label_probe"] = few_labels(seen, asked)
        scores["linear_probe"] = _accuracy(probe.logits(jnp.asarray(asked["feature"])), asked)
        if protocol.fine_tuning is not None:
            tune = _fine_tuner(net, protocol.fine_tuning, protocol.classes, train, test)
            scores["fine_tuned"] = tune(state.key[run], trained)
            scores["fine_tuning_gain"] = scores["fine_tuned"] - tune(state.key[run], untrained)
        return scores

    def draw(directory: Path, means: Means, state: TrainState) -> None:
        some = {name: array[:_PICTURED] for name, array in test.items()}
        _draw_embeddings(
            features(weights(state))(some), some["label"], directory / "embeddings.png"
        )
        if pictures is not None:
            pictures(directory, state, some["image"])

    image = test["image"]
    return tasks.Task(
        net=net,
        learner=drawn,
        data=seen_of(train),
        examples_per_update=batch_size,
        example=jax.ShapeDtypeStruct(image.shape[1:], image.dtype),
        validation=lambda: judge(validation, quickly),
        test=lambda: judge(test, thoroughly),
        headline="knn",
        weights=weights,
        pictures=draw,
    )


def _described(of: Callable[[Data], np.ndarray], images: Data) -> Data:
    return {"feature": of(images), "label": images["label"]}


def _standardised(seen: Data, *others: Data) -> list[Data]:
    """Features by the mean and deviation of the training images, which take no label to know."""
    mean, scale = seen["feature"].mean(0), seen["feature"].std(0) + _EPSILON
    return [{**part, "feature": (part["feature"] - mean) / scale} for part in (seen, *others)]


def _accuracy(scores: jax.Array, asked: Data) -> float:
    return float((np.asarray(scores).argmax(-1) == asked["label"]).mean())


def _extractor(net: Net) -> Callable[[Weights], Callable[[Data], np.ndarray]]:
    """`weights -> (images -> features [N, D])`."""

    @jax.jit
    def apply(weights: Weights, image: jax.Array) -> jax.Array:
        output, _ = net.apply(weights["params"], weights["model_state"], image)
        return output.astype(jnp.float32)

    def features(weights: Weights) -> Callable[[Data], np.ndarray]:
        def of(images: Data) -> np.ndarray:
            image = images["image"]
            # Begun anew with where they do not fill the last, lest each size be compiled.
            rows = np.arange(-(-len(image) // _CHUNK) * _CHUNK).reshape(-1, _CHUNK) % len(image)
            return np.concatenate([apply(weights, image[part]) for part in rows])[: len(image)]

        return of

    return features


def _fine_tuner(
    net: Net, how: FineTuning, classes: int, train: Data, test: Data
) -> Callable[[jax.Array, Weights], float]:
    """`(key, weights of the net) -> accuracy on test images` after training with all labels."""
    schedule = schedules.warmup_cosine(how.learning_rate, how.steps, warmup_steps=how.steps // 20)
    learner = classifier(
        nets.chain(backbone=net, head=nets.mlp((), classes)),
        optimizers.adamw(schedule, weight_decay=how.weight_decay),
        augment=how.augment,
    )
    images = jax.tree.map(jnp.asarray, train)
    drawn = accumulated(resident(learner, how.batch_size), how.accumulate)
    start, evaluate = jax.jit(drawn.init), evaluator(learner, test, batch_size=_CHUNK)

    def accuracy(key: jax.Array, weights: Weights) -> float:
        state = start(key, images)
        state = state.replace(
            params={**state.params, "backbone": weights["params"]},
            model_state={**state.model_state, "backbone": weights["model_state"]},
        )
        n = training.updates_per_call(drawn, state, images, how.steps, how.steps)
        tuned = fit(repeated(drawn, n), state, lambda *_: images, steps=how.steps, steps_per_call=n)
        return derive(evaluate(tuned.state, key))["accuracy"]

    return accuracy


def in_the_plane(features: np.ndarray) -> np.ndarray:
    """Features `[N, D]` by t-SNE (van der Maaten & Hinton 2008): `[N, 2]`."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # for so few points threads wait for each other ten times as long
        return TSNE(random_state=0, init="pca").fit_transform(features)


def _draw_embeddings(features: np.ndarray, label: np.ndarray, path: Path) -> None:
    """Features in the plane, by principal components and by t-SNE."""
    from sklearn.decomposition import PCA

    places = {
        "principal components": PCA(2).fit_transform(features),
        "t-SNE": in_the_plane(features),
    }
    draw_classes(places, label, path)
