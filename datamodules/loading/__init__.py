"""How images reach a batch: datasets, samplers, loaders, splits."""
