"""Bytes of what core says: messages on a wire, models in files. Formats only, nothing decides here."""
