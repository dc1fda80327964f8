"""A linear net and batches of few labels, small enough to compute by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from nets.net import Net

KEY = jax.random.key(0)
X = np.asarray(jax.random.normal(jax.random.key(1), (4, 3)))
U = np.asarray(jax.random.normal(jax.random.key(2), (6, 3)))
LABEL = np.array([0, 1, 2, 1])
TRUTH = np.array([2, 2, 1, 0, 0, 1])
BATCH = {"labelled": {"x": X, "label": LABEL}, "unlabelled": {"x": U, "label": TRUTH}}


def linear(classes: int = 3, seed: int = 3) -> Net:
    """Logits `x @ w`."""

    def init(key, x):
        return {"w": 0.4 * jax.random.normal(jax.random.key(seed), (x.shape[1], classes))}, {}

    return Net(init, lambda params, state, x, key=None, train=False: (x @ params["w"], state))


def recorded(net: Net, calls: list) -> Net:
    """The net, which notes how many rows each pass in training had."""

    def apply(params, state, x, key=None, train=False):
        if train:
            calls.append(len(x))
        return net.apply(params, state, x, key=key, train=train)

    return Net(net.init, apply)


def softmax(logits):
    logits = np.float64(logits)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(logits, label):
    return -np.log(softmax(logits)[np.arange(len(label)), label])


def gradient(learner, batch, state=None):
    """What one update subtracts by SGD with rate 1, and the state and metrics after it."""
    state = learner.init(KEY, batch) if state is None else state
    after, metrics = jax.jit(learner.update)(state, batch)
    return jax.tree.map(jnp.subtract, state.params, after.params), after, metrics


def labelled_gradient(w, x=X, label=LABEL):
    """Of the mean cross entropy, by hand."""
    return x.T @ (softmax(x @ w) - np.eye(w.shape[1])[label]) / len(x)
