"""Horizontal learning: learners, algorithms and their protocols."""
