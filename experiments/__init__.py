"""Experiments that reproduce published results, one file each; `python -m experiments` lists them."""

from experiments.prediction import load

__all__ = ["load"]
