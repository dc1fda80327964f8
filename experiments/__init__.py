"""Experiments that reproduce published results; `python -m experiments` lists them."""

from experiments.prediction import load

__all__ = ["load"]
