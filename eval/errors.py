"""The error a user meets when an evaluation cannot be done."""


class EvalError(ValueError):
    """One line: what is wrong, where, and what to do."""
