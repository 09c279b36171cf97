import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
FILES = (SCRIPTS / "benchmarks").glob("[!_]*.py")
PARTS = sorted(path.stem.replace("_", "-") for path in FILES if path.stem != "common")


def help_of(*part):
    command = [sys.executable, SCRIPTS / "benchmark", *part, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_benchmark_says_what_it_can_measure():
    said = help_of()
    assert all(f"{part} " in said for part in PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_says_what_it_compares_and_how_often(part):
    said = help_of(part)
    assert "against" in said or "changed" in said
    assert "--rounds" in said
