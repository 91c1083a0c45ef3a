"""Running and steering federations: job files, run folders, the command line."""
