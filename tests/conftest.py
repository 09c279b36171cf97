import inspect
import json
import logging
import os
import re
from collections import defaultdict
from pathlib import Path

import pytest

from recipes.evaluation.tables import versions
from tests.helpers.drawing import draw_nothing
from tests.system.exactness import ACCUMULATED, BATCHES, CASES, STEPS, Runs

SLOW = 4  # seconds
PLOTS = Path(__file__).parent / "plots"
WHOLE_RUNS = Path(__file__).parent / "system"


def pytest_addoption(parser):
    parser.addoption(
        "--exactness",
        type=os.path.abspath,
        metavar="PATH",
        help="write how far apart the runs of one result are, as JSON",
    )

    parser.addoption("--quick", action="store_true", help="leave out the tests that are marked slow")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config, items):
    """Divides the tests among processes: by file, but by case those that share whole runs of a case.

    Tests that start several processes are slow without being marked.
    """
    for item in items:
        group = item.nodeid.partition("::")[0]
        if "runs" in item.fixturenames and item.path.is_relative_to(WHOLE_RUNS):
            group = item.callspec.params.get("case", CASES[0]) if hasattr(item, "callspec") else CASES[0]
        item.add_marker(pytest.mark.xdist_group(str(group)))
        if re.search(r"\bprocesses=[2-9]", inspect.getsource(item.function)):
            item.add_marker(pytest.mark.slow)
    if config.getoption("--quick"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_terminal_summary(terminalreporter, config):
    """Names the tests that take long and are not marked slow, which would make ``scripts/test --quick`` slow."""
    seconds = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and "slow" not in report.keywords:
                seconds[report.nodeid.partition("@")[0]] += report.duration
    if long := {name: time for name, time in seconds.items() if time > SLOW}:
        terminalreporter.section(f"took more than {SLOW} s and are not marked slow")
        for name in sorted(long, key=long.get, reverse=True):
            terminalreporter.line(f"{long[name]:6.1f} s  {name}")


@pytest.hookimpl(tryfirst=True)  # before the fixtures that a test is the first to use
def pytest_runtest_setup(item):
    """Leaves out the pictures of runs, unless the test is marked to look at them."""
    draw_nothing(not (item.get_closest_marker("draws") or item.path.is_relative_to(PLOTS)))


@pytest.fixture(autouse=True)
def _loggers_stay_as_they_are():
    """Undoes what a test does to the levels by which the library decides which lines to print."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels):
        logger.setLevel(level)


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
        protocol = {
            "steps": STEPS,
            "batches_of_a_step": ACCUMULATED,
            "batches_per_epoch": BATCHES,
            "precision": "64-true",
        }
        report = {"protocol": protocol, "largest_relative_difference": table, "versions": versions()}
        Path(path).write_text(json.dumps(report, indent=1) + "\n")
