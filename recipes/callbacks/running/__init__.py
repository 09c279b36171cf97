"""What a run needs to go well: checkpoints, its directory, compilation, bounds on weights."""
