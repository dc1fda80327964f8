"""What the experiments in self-supervised learning share: how good the frozen features are."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import training
from experiments.training import Judge
from nets.net import Net
from paradigms import data
from paradigms.core.learner import Learner, Metrics
from paradigms.core.loop import evaluator
from paradigms.core.metrics import Mean, Means
from paradigms.core.pictures import draw_classes
from paradigms.core.state import PyTree, TrainState
from paradigms.core.transforms import resident, seeded
from paradigms.data.cache import Data
from paradigms.self_supervised import knn, linear_probe, logistic_probe

_CHUNK = 500  # images that go through a net at once
_PICTURED = 500
_EPSILON = 1e-6

Scores = dict[str, float]


class Protocol(NamedTuple):
    """How features are judged; the numbers belong to what is reported.

    Attributes:
      classes: number of classes.
      k: neighbours that vote.
      temperature: of their votes.
      labels_per_class: of the few-label probe.
      draws: of those labels, over which its accuracy is averaged.
      rates: learning rates of the linear probe, to choose from on validation data.
    """

    classes: int = 10
    k: int = 200
    temperature: float = 0.1
    labels_per_class: int = 4
    draws: int = 10
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)


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
    pictures: Callable[[Path, Means, TrainState], None] | None = None,
) -> training.Task:
    """Learning without labels, judged by what labels then make of the features.

    `knn` is the accuracy of neighbours among the training images, `few_label_probe` that of
    logistic regression on few of their labels: on validation images during training, where step 0
    shows what an untrained net can do, and on test images, once, at the end. Then comes
    `linear_probe`, with all labels, and `knn_gain`, what `knn` has gained over the same net before
    training. What the learner evaluates is added.

    Args:
      net: raw images to features `[B, D]`, in evaluation.
      learner: one run; sees images alone.
      part: the name of the net's weights among those of the learner.
      train: labelled images; the learner never sees the labels.
      validation: held-out images.
      test: likewise.
      batch_size: of the global minibatch.
      protocol: see there.
      pictures: what to draw besides the embeddings of some test images.
    """

    def weights(state: TrainState) -> dict[str, PyTree]:
        return {"params": state.params[part], "model_state": state.model_state[part]}

    features, drawn = _extractor(net, weights), resident(learner, batch_size)

    def judge(held_out: Data, score: Callable[[TrainState, int], Scores]) -> Judge:
        evaluate = evaluator(seeded(learner), _unlabelled(held_out), batch_size=_CHUNK)

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
        of = features(state, run)
        seen, tried = (_described(of, images) for images in (train, validation))
        return {
            "knn": neighbours(seen, tried),
            "few_label_probe": few_labels(*_standardised(seen, tried)),
        }

    start = jax.jit(seeded(drawn).init)

    def thoroughly(state: TrainState, run: int) -> Scores:
        # What a run began with is a function of its key.
        before = features(start(state.key[run : run + 1], _unlabelled(train)), 0)
        untrained = neighbours(*(_described(before, images) for images in (train, test)))
        of = features(state, run)
        seen, tried, asked = (_described(of, images) for images in (train, validation, test))
        knn_accuracy = neighbours(seen, asked)
        seen, tried, asked = _standardised(seen, tried, asked)
        probe, _ = linear_probe(
            jax.random.key(0),
            seen,
            tried,
            protocol.classes,
            learning_rates=protocol.rates,
            standardise=False,
        )
        return {
            "knn": knn_accuracy,
            "knn_gain": knn_accuracy - untrained,
            "few_label_probe": few_labels(seen, asked),
            "linear_probe": _accuracy(probe.logits(jnp.asarray(asked["feature"])), asked),
        }

    def draw(directory: Path, means: Means, state: TrainState) -> None:
        some = {name: array[:_PICTURED] for name, array in test.items()}
        one = jax.tree.map(lambda leaf: leaf[None], state)
        _draw_embeddings(features(one)(some), some["label"], directory / "embeddings.png")
        if pictures is not None:
            pictures(directory, means, state)

    image = test["image"]
    return training.Task(
        net=net,
        learner=drawn,
        data=_unlabelled(train),
        examples_per_update=batch_size,
        example=jax.ShapeDtypeStruct(image.shape[1:], image.dtype),
        validation=lambda: judge(validation, quickly),
        test=lambda: judge(test, thoroughly),
        headline="knn",
        weights=weights,
        pictures=draw,
    )


def _unlabelled(images: Data) -> Data:
    return {"image": images["image"]}


def _described(of: Callable[[Data], np.ndarray], images: Data) -> Data:
    return {"feature": of(images), "label": images["label"]}


def _standardised(seen: Data, *others: Data) -> list[Data]:
    """Features by the mean and deviation of the training images, which take no label to know."""
    mean, scale = seen["feature"].mean(0), seen["feature"].std(0) + _EPSILON
    return [{**part, "feature": (part["feature"] - mean) / scale} for part in (seen, *others)]


def _accuracy(scores: jax.Array, asked: Data) -> float:
    return float((np.asarray(scores).argmax(-1) == asked["label"]).mean())


def _extractor(
    net: Net, weights: Callable[[TrainState], dict[str, PyTree]]
) -> Callable[..., Callable[[Data], np.ndarray]]:
    """`(state, run) -> (images -> features [N, D])`."""

    @jax.jit
    def apply(live: dict[str, PyTree], image: jax.Array) -> jax.Array:
        output, _ = net.apply(live["params"], live["model_state"], image)
        return output.astype(jnp.float32)

    def features(state: TrainState, run: int = 0) -> Callable[[Data], np.ndarray]:
        live = jax.tree.map(lambda leaf: leaf[run], weights(state))

        def of(images: Data) -> np.ndarray:
            image = images["image"]
            starts = range(0, len(image), _CHUNK)
            return np.concatenate([np.asarray(apply(live, image[i : i + _CHUNK])) for i in starts])

        return of

    return features


def _draw_embeddings(features: np.ndarray, label: np.ndarray, path: Path) -> None:
    """Features in the plane, by principal components and by t-SNE."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    draw_classes(
        {
            "principal components": PCA(2).fit_transform(features),
            "t-SNE": TSNE(random_state=0, init="pca").fit_transform(features),
        },
        label,
        path,
    )
