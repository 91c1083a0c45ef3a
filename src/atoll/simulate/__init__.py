"""Drivers for one process: a world in virtual time, and lanes that batch clients."""
