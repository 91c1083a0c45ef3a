"""The six ideas, pure: no clock, no socket, no file, no global randomness."""
