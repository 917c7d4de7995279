"""The error a user meets when a run cannot start or go on."""


class RunError(ValueError):
    """One line: what is wrong with the recipe or the run, where, and what to do."""
