"""Models in use: exported, checked against their source, and answering where the data are."""
