"""Supervised learning: a network is shown inputs with their answers."""

from paradigms.core.classification import (
    calibration_error,
    cross_entropy,
    derive_classification,
)
from paradigms.supervised.classification import classifier
from paradigms.supervised.regression import huber, regressor, squared_error

__all__ = [
    "calibration_error",
    "classifier",
    "cross_entropy",
    "derive_classification",
    "huber",
    "regressor",
    "squared_error",
]
