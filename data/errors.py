"""The error a user meets when data is wrong."""


class DataError(ValueError):
    """One line: what is wrong with the data, where, and what to do."""
