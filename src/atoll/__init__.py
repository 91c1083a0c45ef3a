"""Atoll: federated learning at the edge."""
