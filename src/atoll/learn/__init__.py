"""Learners and what they stand on: models that train on one client's rows."""
