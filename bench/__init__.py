"""Measurements against what others do, on the same data in the same process."""
