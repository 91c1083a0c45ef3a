"""The driver for one process: a world in virtual time, and the folder a run leaves."""
