"""Experiments in semi-supervised learning, one file for each result."""
