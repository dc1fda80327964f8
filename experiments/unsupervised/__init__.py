"""Unsupervised learning."""
