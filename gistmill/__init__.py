"""Gistmill's core: the vocabulary and the rules. It imports no torch and no web framework."""

__version__ = "0.1.0"
