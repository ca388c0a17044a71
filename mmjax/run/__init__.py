"""A run in memory and on disk: compiled program, workdir, checkpoints, view, load."""
