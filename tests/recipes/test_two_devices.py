import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "two_devices.py"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_processes_with_half_the_batch_each_train_the_weights_of_one(tmp_path):
    """Through sampler, views, gather and optimiser; a gather that lost other devices' gradients would show."""
    spec = importlib.util.spec_from_file_location("two_devices", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    subprocess.run([sys.executable, SCRIPT, tmp_path], check=True, timeout=240, capture_output=True)
    module.train(tmp_path, devices=1)
    one, two = (torch.load(tmp_path / f"{devices}.pt", weights_only=True) for devices in (1, 2))
    torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-12)
