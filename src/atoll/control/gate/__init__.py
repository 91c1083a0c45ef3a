"""The gate: what looks at answers of members before anything else does."""
