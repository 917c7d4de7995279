"""What stands behind `python -m mma`: reading a folder without its base, and telling about it."""
