"""The error a user meets when an adapter does not fit."""


class AdapterError(ValueError):
    """One line: what is wrong with the adapter, where, and what to do."""
