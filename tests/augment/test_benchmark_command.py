import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark"


def test_benchmark_says_what_it_can_measure():
    said = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    assert "augment" in said
    said = subprocess.run(
        [sys.executable, SCRIPT, "augment", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(option in said for option in ("--size", "--batch", "--rounds"))
