"""Optimisers, as compositions of optax.

Every optimiser is an `optax.GradientTransformation` that

- clips the global norm of the gradient first, where `max_norm` is given;
- decays kernels only, unless `decay_mask` says otherwise;
- takes as `learning_rate` a number, a traced scalar (so that a sweep compiles once) or a schedule
  (`paradigms.core.schedules`);
- with `accumulate=n` acts on the plain mean of n gradients and gives zero updates in between. The
  schedule counts the real updates. A learner whose batches are masked must see to it that the mean
  of its gradients is the gradient of the mean: each loss divided by a fixed count, not by the
  number of valid examples in its own micro-batch.

Anything else of optax goes wherever these go.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from paradigms.core.errors import InputError
from paradigms.core.scalars import Scalar, Scheduled, check_range, is_zero
from paradigms.core.state import PyTree

Mask = bool | PyTree | Callable[[PyTree], PyTree]


# Which parameters -------------------------------------------------------------------------------

_POSITION = {"pos", "posemb", "position", "positions", "positional"}
_NOT_KERNEL = _POSITION | {"bias", "scale", "beta", "gamma", "cls"}
_INPUT_OR_OUTPUT = {"embed", "embedding", "embeddings", "stem", "head", "logits", "classifier"}


def _names(path: tuple[Any, ...]) -> list[str]:
    """The path of a leaf as names, outermost first."""
    text = jax.tree_util.keystr(path, simple=True, separator="/")
    return text.split("/") if text else [""]


def _words(name: str) -> list[str]:
    """`"PosEmbed_0"` and `"pos_embed"` are both pos, embed."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _is_kernel(path: tuple[Any, ...], leaf: jax.Array) -> bool:
    *modules, name = _names(path)
    if leaf.ndim < 2:
        return False
    if name == "kernel":
        return True
    words = _words(name)
    if _NOT_KERNEL & set(words) or words[-1:] in (["token"], ["tokens"]):
        return False
    # An embedding table is a kernel, unless the module around it holds positions.
    return not any(_POSITION & set(_words(module)) for module in modules)


def kernels_only(params: PyTree) -> PyTree:
    """Marks the leaves that weight decay is for: matrices, convolutions, embedding tables.

    A leaf is a kernel when it has two dimensions or more and, unless it is called `kernel`, its
    name is not that of a bias, a norm's scale, a class or mask token or a position embedding. The
    rank alone would not do: position embeddings are `[1, T, D]`, attention biases `[heads, D]`.

    Returns:
      A tree like `params` of bool.
    """
    return jax.tree_util.tree_map_with_path(_is_kernel, params)


def hidden_kernels(params: PyTree) -> PyTree:
    """Marks the kernels between input and output, which are what Muon is for.

    They are those of `kernels_only` whose path names no embedding, stem or head.
    """

    def is_hidden(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        words = {word for name in _names(path) for word in _words(name)}
        return _is_kernel(path, leaf) and not words & _INPUT_OR_OUTPUT

    return jax.tree_util.tree_map_with_path(is_hidden, params)


# Optimisers -------------------------------------------------------------------------------------


def sgd(
    learning_rate: Scheduled,
    momentum: Scalar = 0.0,
    nesterov: bool = False,
    *,
    weight_decay: Scalar = 0.0,
    decay_mask: Mask = kernels_only,
    max_norm: Scalar | None = None,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """Stochastic gradient descent, with the conventions of torch.

    `g <- g + weight_decay * w`, then `m <- momentum * m + g` without a factor `1 - momentum`, then
    `w <- w - learning_rate * m`, or `learning_rate * (g + momentum * m)` with Nesterov (Sutskever
    et al., 2013). The decay passes through the momentum.

    Args:
      learning_rate: see the module.
      momentum: in [0, 1).
      nesterov: look ahead; needs momentum.
      weight_decay: at least 0; the learning rate multiplies it.
      decay_mask: which leaves decay: a function of the parameters, a tree of bool, or True for all.
      max_norm: clip the gradient to this global norm, before the decay is added.
      accumulate: gradients per update.

    Raises:
      InputError: a number out of its range.
    """
    check_range("momentum", momentum, 0, below=1)
    if nesterov and is_zero(momentum):
        raise InputError("nesterov=True needs momentum > 0, for example 0.9")
    return _compose(
        _decay(weight_decay, decay_mask),
        optax.identity() if is_zero(momentum) else optax.trace(momentum, nesterov),
        _scale(learning_rate),
        max_norm=max_norm,
        accumulate=accumulate,
    )


def rmsprop(
    learning_rate: Scheduled,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    *,
    eps_in_sqrt: bool = False,
    centered: bool = False,
    momentum: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    decay_mask: Mask = kernels_only,
    max_norm: Scalar | None = None,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """RMSprop (Hinton, 2012): the gradient over the root of its mean square.

    `v <- decay * v + (1 - decay) * g^2` from 0, then `g / (sqrt(v) + eps)`, then momentum, then the
    learning rate: torch's order. torch's default `decay` (its `alpha`) is .99.

    Args:
      learning_rate: see the module.
      decay: of the mean square, in [0, 1).
      eps: added outside the root as torch does, or inside as optax and Mnih et al. (2015) do.
      eps_in_sqrt: which of the two.
      centered: subtract the squared mean from the mean square (Graves, 2013).
      momentum: in [0, 1), on the scaled gradient.
      weight_decay: at least 0; added to the gradient first, as in `sgd`.
      decay_mask: see `sgd`.
      max_norm: see `sgd`.
      accumulate: see `sgd`.

    Raises:
      InputError: a number out of its range.
    """
    check_range("decay", decay, 0, below=1)
    check_range("eps", eps, 0)
    check_range("momentum", momentum, 0, below=1)
    by_root = optax.scale_by_stddev if centered else optax.scale_by_rms
    return _compose(
        _decay(weight_decay, decay_mask),
        by_root(decay, eps, eps_in_sqrt=eps_in_sqrt),
        optax.identity() if is_zero(momentum) else optax.trace(momentum),
        _scale(learning_rate),
        max_norm=max_norm,
        accumulate=accumulate,
    )


def adam(
    learning_rate: Scheduled,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    *,
    weight_decay: Scalar = 0.0,
    decay_mask: Mask = kernels_only,
    max_norm: Scalar | None = None,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, 2015, https://arxiv.org/abs/1412.6980, algorithm 1).

    `weight_decay` is added to the gradient and rescaled with it, as torch's Adam does; see `adamw`
    for the decay that is not.

    Args:
      learning_rate: see the module.
      b1: decay of the mean, in [0, 1).
      b2: decay of the mean square, in [0, 1).
      eps: added outside the root.
      weight_decay: at least 0.
      decay_mask: see `sgd`.
      max_norm: see `sgd`.
      accumulate: see `sgd`.

    Raises:
      InputError: a number out of its range.
    """
    return _compose(
        _decay(weight_decay, decay_mask),
        _adam(b1, b2, eps),
        _scale(learning_rate),
        max_norm=max_norm,
        accumulate=accumulate,
    )


def adamw(
    learning_rate: Scheduled,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    *,
    weight_decay: Scalar = 0.01,
    decay_mask: Mask = kernels_only,
    max_norm: Scalar | None = None,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    `w <- w - learning_rate * (adam(g) + weight_decay * w)`, https://arxiv.org/abs/1711.05101,
    algorithm 2 with the learning rate within the multiplier, as torch has it. The default decay is
    torch's; optax's is 1e-4.

    Args:
      learning_rate: see the module.
      b1: decay of the mean, in [0, 1).
      b2: decay of the mean square, in [0, 1).
      eps: added outside the root.
      weight_decay: at least 0.
      decay_mask: see `sgd`.
      max_norm: see `sgd`.
      accumulate: see `sgd`.

    Raises:
      InputError: a number out of its range.
    """
    return _compose(
        _adam(b1, b2, eps),
        _decay(weight_decay, decay_mask),
        _scale(learning_rate),
        max_norm=max_norm,
        accumulate=accumulate,
    )


def lars(
    learning_rate: Scheduled,
    momentum: Scalar = 0.9,
    *,
    trust_coefficient: Scalar = 0.001,
    trust_mask: Mask = kernels_only,
    weight_decay: Scalar = 0.0,
    decay_mask: Mask = kernels_only,
    max_norm: Scalar | None = None,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """Layer-wise adaptive rate scaling (You et al., 2017, https://arxiv.org/abs/1708.03888).

    With `u = g + weight_decay * w`, each leaf of `trust_mask` is scaled to
    `trust_coefficient * |w| / |u| * u` (by 1 where either norm is 0); then
    `m <- momentum * m + learning_rate * u`, the learning rate within the momentum (algorithm 1),
    and `w <- w - m`.

    Args:
      learning_rate: see the module.
      momentum: in [0, 1).
      trust_coefficient: positive; .001 in the paper.
      trust_mask: which leaves are scaled so; by default not biases and norms, as SimCLR and BYOL
        have it.
      weight_decay: at least 0.
      decay_mask: see `sgd`.
      max_norm: see `sgd`.
      accumulate: see `sgd`.

    Raises:
      InputError: a number out of its range.
    """
    check_range("learning_rate", learning_rate, 0)
    check_range("momentum", momentum, 0, below=1)
    check_range("trust_coefficient", trust_coefficient, 0)
    check_range("weight_decay", weight_decay, 0)
    return _compose(
        optax.lars(
            learning_rate,
            weight_decay,
            decay_mask,
            trust_coefficient=trust_coefficient,
            trust_ratio_mask=trust_mask,
            momentum=momentum,
        ),
        max_norm=max_norm,
        accumulate=accumulate,
    )


def muon(
    learning_rate: Scheduled,
    momentum: Scalar = 0.95,
    *,
    hidden: Callable[[PyTree], PyTree] = hidden_kernels,
    adam_learning_rate: Scheduled | None = None,
    weight_decay: Scalar = 0.0,
    decay_mask: Mask = kernels_only,
    max_norm: Scalar | None = None,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """Muon (Jordan, 2024, https://kellerjordan.github.io/posts/muon) on hidden kernels.

    The Nesterov momentum of each hidden kernel, seen as a matrix of inputs by outputs, is replaced
    by a near-orthogonal one (five Newton-Schulz steps: singular values of about .7 to 1.2) times
    `sqrt(max(1, outputs / inputs))`. A convolution `[h, w, in, out]` is the matrix
    `[h * w * in, out]`. Embeddings, stem, head, biases and norms get `adamw`.

    Args:
      learning_rate: of the hidden kernels; see the module.
      momentum: in [0, 1).
      hidden: which leaves get Muon, as a tree of bool from the parameters. The default goes by
        name, so a network whose first or last layer has no telling name needs its own.
      adam_learning_rate: of the rest; None for the same.
      weight_decay: at least 0, decoupled in both as in `adamw`.
      decay_mask: see `sgd`.
      max_norm: see `sgd`.
      accumulate: see `sgd`.

    Raises:
      InputError: a number out of its range; at `init`, no leaf is hidden or one is no matrix.
    """
    check_range("learning_rate", learning_rate, 0)
    check_range("momentum", momentum, 0, below=1)
    check_range("weight_decay", weight_decay, 0)

    def labels(params: PyTree) -> PyTree:
        marks = hidden(params)
        if not any(jax.tree.leaves(marks)):
            raise InputError("muon finds no hidden kernel in these parameters; see its `hidden`")
        return jax.tree.map(lambda mark: "muon" if mark else "adamw", marks)

    matrices = optax.contrib.muon(
        learning_rate,
        beta=momentum,
        weight_decay=weight_decay,
        weight_decay_mask=decay_mask,
        muon_weight_dimension_numbers=_matrix_dimensions,
    )
    rest = adamw(
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        weight_decay=weight_decay,
        decay_mask=decay_mask,
    )
    return _compose(
        optax.multi_transform({"muon": matrices, "adamw": rest}, labels),
        max_norm=max_norm,
        accumulate=accumulate,
    )


def _matrix_dimensions(params: PyTree) -> PyTree:
    """Which dimensions of each kernel are inputs and which outputs."""

    def split(path: tuple[Any, ...], leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers:
        names = _names(path)
        if leaf.ndim < 2:
            raise InputError(f"muon needs matrices; '{'/'.join(names)}' has shape {leaf.shape}")
        # Flax's attention projects [D] to [heads, D / heads]; every other kernel has one output.
        inputs = 1 if {"query", "key", "value"} & set(names) else leaf.ndim - 1
        axes = tuple(range(leaf.ndim))
        return optax.contrib.MuonDimensionNumbers(axes[:inputs], axes[inputs:])

    return jax.tree_util.tree_map_with_path(split, params)


def freeze() -> optax.GradientTransformation:
    """Leaves parameters as they are; for use in `by_path`."""
    return _FROZEN


_FROZEN = optax.set_to_zero()


def by_path(
    rules: Mapping[str, optax.GradientTransformation],
    default: optax.GradientTransformation,
    *,
    max_norm: Scalar | None = None,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """Gives each parameter the optimiser of the first pattern that its path contains.

    ```
    by_path(
        {"whiten/kernel": freeze(), "BatchNorm_[0-9]+/bias": sgd(64 * rate, 0.85, nesterov=True)},
        default=sgd(rate, 0.85, nesterov=True),
    )
    ```

    A group that is trained for the first k updates only has a schedule that ends in 0, for instance
    `optax.join_schedules([schedule, constant(0.0)], [k])`.

    Args:
      rules: from regular expressions, searched for in paths such as `backbone/Conv_0/kernel`, to
        optimisers.
      default: for the parameters that no pattern matches.
      max_norm: clip to this global norm over all groups but the frozen ones; `max_norm` of a
        group's own optimiser would see that group alone.
      accumulate: gradients per update, of all groups.

    Raises:
      InputError: a pattern that is no regular expression; at `init`, one that matches no path.
    """
    patterns = {}
    for pattern in rules:
        try:
            patterns[pattern] = re.compile(pattern)
        except re.error as error:
            raise InputError(f"'{pattern}' is not a regular expression: {error}") from error

    def labels(params: PyTree) -> PyTree:
        unused = set(patterns)

        def label(path: tuple[Any, ...], _: Any) -> str:
            name = "/".join(_names(path))
            found = [text for text, pattern in patterns.items() if pattern.search(name)]
            unused.difference_update(found)
            # Patterns are prefixed so that none can be mistaken for the default.
            return f"path {found[0]}" if found else "default"

        tree = jax.tree_util.tree_map_with_path(label, params)
        if unused:
            leaves = jax.tree_util.tree_leaves_with_path(params)
            some = ", ".join("/".join(_names(path)) for path, _ in leaves[:8])
            raise InputError(
                f"the pattern '{min(unused)}' matches no parameter; the first paths are {some}"
            )
        return tree

    optimizers = {f"path {text}": optimizer for text, optimizer in rules.items()}
    optimizers["default"] = default

    def frozen(params: PyTree) -> PyTree:
        return jax.tree.map(lambda text: optimizers[text] is _FROZEN, labels(params))

    return _compose(
        optax.multi_transform(optimizers, labels),
        max_norm=max_norm,
        accumulate=accumulate,
        frozen=frozen,
    )


def _compose(
    *steps: optax.GradientTransformation,
    max_norm: Scalar | None,
    accumulate: int,
    frozen: Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformation:
    """Accumulation around clipping around the optimiser."""
    if not isinstance(accumulate, int | np.integer) or accumulate < 1:
        raise InputError(f"accumulate must be a whole number of at least 1, not {accumulate}")
    clip = []
    if max_norm is not None:
        check_range("max_norm", max_norm, 0, above=0)
        clip = [optax.masked(_FROZEN, frozen)] if frozen is not None else []
        clip.append(optax.clip_by_global_norm(max_norm))
    optimizer = optax.chain(*clip, *steps)
    if accumulate == 1:
        return optimizer
    return optax.MultiSteps(optimizer, int(accumulate)).gradient_transformation()


def _adam(b1: Scalar, b2: Scalar, eps: Scalar) -> optax.GradientTransformation:
    check_range("b1", b1, 0, below=1)
    check_range("b2", b2, 0, below=1)
    check_range("eps", eps, 0)
    return optax.scale_by_adam(b1, b2, eps)


def _decay(weight_decay: Scalar, mask: Mask) -> optax.GradientTransformation:
    check_range("weight_decay", weight_decay, 0)
    if is_zero(weight_decay):
        return optax.identity()  # which, unlike a decay of 0, needs no parameters
    return optax.add_decayed_weights(weight_decay, mask)


def _scale(learning_rate: Scheduled) -> optax.GradientTransformation:
    check_range("learning_rate", learning_rate, 0)
    return optax.scale_by_learning_rate(learning_rate)
