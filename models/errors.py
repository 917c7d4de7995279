"""The error a user meets when a base model cannot be read."""


class ModelError(ValueError):
    """One line: what is wrong with the weights or settings, where, and what to do."""
