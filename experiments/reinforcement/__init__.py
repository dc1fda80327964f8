"""Experiments of reinforcement learning."""
