"""A run in memory and on disk: program, executables, workdir, checkpoints, view, load."""
