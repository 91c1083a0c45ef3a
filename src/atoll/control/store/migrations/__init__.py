"""What alembic reads: one file per change of the schema, in `versions`."""
