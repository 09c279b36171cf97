import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

from recipes.evaluation.tables import versions
from tests.system.exactness import BATCHES, STEPS, Runs


def pytest_addoption(parser):
    parser.addoption(
        "--exactness",
        type=os.path.abspath,
        metavar="PATH",
        help="write how far apart the runs of one result are, as JSON",
    )


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Whole runs of the command, each made once."""
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def measured(request):
    """The differences measured, by config and by what was done to the run."""
    table = defaultdict(dict)
    yield table
    if path := request.config.getoption("--exactness"):
        protocol = {"steps": STEPS, "batches_per_epoch": BATCHES, "precision": "64-true"}
        report = {"protocol": protocol, "largest_relative_difference": table, "versions": versions()}
        Path(path).write_text(json.dumps(report, indent=1) + "\n")
