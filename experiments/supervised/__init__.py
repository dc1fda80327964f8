"""Experiments with supervised learning."""
