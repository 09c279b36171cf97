"""Commands of their own beside fit, validate, test and predict: one module with a ``main`` for each."""
