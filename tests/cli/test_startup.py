import subprocess
import sys

import pytest

HEAVY = {"sklearn", "matplotlib", "wandb", "pandas", "timm", "scipy.optimize"}


@pytest.mark.slow
def test_the_command_imports_nothing_heavy_before_it_is_used():
    code = "import sys, lightning.pytorch, torchvision; before = set(sys.modules); import recipes.cli; "
    code += "print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())
