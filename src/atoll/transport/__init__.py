"""Links between members: sessions, uploads, downloads, and who may speak."""
