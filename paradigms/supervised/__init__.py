"""Supervised learning: a network is shown inputs with their answers."""

from paradigms.supervised.classification import (
    calibration_error,
    classifier,
    cross_entropy,
    derive_classification,
)
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
