"""The changes of the schema, oldest first; a file is never edited once a release holds it."""
