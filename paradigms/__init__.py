"""Every way of learning as pure functions on one train state."""

__version__ = "0.1.0"
