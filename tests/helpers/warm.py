"""Imported by the server of processes: what every run needs is there before the first process is forked.

A forked process inherits the modules and what jsonargparse has found out about the signatures of our classes.
"""

import contextlib
import io
import warnings

import matplotlib.backends.backend_agg  # noqa: F401
import sklearn.datasets  # noqa: F401
import torchvision  # noqa: F401

from recipes.cli import main

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["fit", "--config", "simclr-digits", "--print_config"])
