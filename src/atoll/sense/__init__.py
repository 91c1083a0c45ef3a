"""Readings of machines: taken in, judged, kept encrypted, each once; windows of them."""
