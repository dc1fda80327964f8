"""`Mean`: the one form in which a learner reports a number."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


class Mean(flax.struct.PyTreeNode):
    """A weighted mean that has not been divided yet, so that it can be added.

    Means add exactly over steps, batches, episodes and devices, which averages of averages do not:
    three batches of 4, 4 and 2 examples with losses 1, 1 and 6 have mean 2, not 2.67.

    Attributes:
      total: float32 array of any shape, the weighted sum.
      count: float32 array of the same shape, the sum of weights. Zero means that nothing was
        measured: the value is absent, not NaN.
    """

    total: jax.Array
    count: jax.Array

    @classmethod
    def of(cls, values: Any, weights: Any = None) -> "Mean":
        """The mean of `values` over all their entries, as a scalar.

        Args:
          values: numbers of any shape.
          weights: broadcastable to `values`; a mask of 0 and 1, or any non-negative weights.
            Entries of weight zero do not count, whatever they hold (NaN included).
        """
        values = jnp.asarray(values, jnp.float32)
        if weights is None:
            return cls(total=values.sum(), count=jnp.full((), values.size, jnp.float32))
        weights = jnp.broadcast_to(jnp.asarray(weights, jnp.float32), values.shape)
        total = jnp.where(weights > 0, values * weights, 0.0).sum()
        return cls(total=total, count=weights.sum())

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(total=self.total + other.total, count=self.count + other.count)

    def value(self) -> jax.Array:
        """The mean, with zero where nothing was counted; for use inside jit, as a loss."""
        return self.total / jnp.where(self.count > 0, self.count, 1.0)


Means = Mapping[str, Mean]


def add(first: Means, second: Means) -> dict[str, Mean]:
    """Adds two sets of means name by name; a name in only one of them is kept."""
    total = dict(first)
    for name, mean in second.items():
        total[name] = total[name] + mean if name in total else mean
    return total


def collapse(means: Means, axis: int = 0) -> dict[str, Mean]:
    """Adds means that were stacked along `axis`, for instance one per update."""
    return {
        name: Mean(total=mean.total.sum(axis), count=mean.count.sum(axis))
        for name, mean in means.items()
    }


def derive(means: Means) -> dict[str, float]:
    """Divides on the host. Scalars become floats; absent means and arrays are left out.

    An array-valued mean (a confusion matrix, calibration bins) is an ingredient: the paradigm that
    reports it has a function of the same signature that turns it into numbers.
    """
    values = {}
    for name, mean in means.items():
        count = np.asarray(mean.count)
        if count.ndim == 0 and count > 0:
            values[name] = float(np.asarray(mean.total) / count)
    return values
