"""Figures anyone can take again: `python -m bench simulate --json FILE`."""
