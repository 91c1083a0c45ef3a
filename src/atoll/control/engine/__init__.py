"""Members of a federation as they run: coordinator, edge, client, and what they share."""
