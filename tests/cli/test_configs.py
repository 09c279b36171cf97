"""Every packaged config says what it is and runs one batch of training, validation and test."""

import pytest
import torch
import yaml
from torchvision.utils import save_image

from recipes.catalogue import CONFIGS, config_names
from recipes.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Class folders of random pictures: enough to run every step, not to learn anything."""
    root = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                save_image(torch.rand(3, 40, 48, generator=generator), root / split / name / f"{i}.png")
    return root


@pytest.mark.parametrize("name", config_names())
def test_config_runs_one_batch(name, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    args = ["--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu"]
    images = config["data"].get("init_args", {}).get("base", config["data"])
    if images["class_path"] != "datamodules.Digits":  # the others would have to be downloaded
        grey = config["model"]["init_args"]["encoder"]["init_args"].get("in_channels", 3) == 1
        data = {"root": str(pictures), "image_size": 64, "batch_size": 4, "channels": 1 if grey else 3}
        args += [part for key, value in data.items() for part in (f"--data.{key}", str(value))]
        args = ["--data", "ImageFolder", *args]
        if config["model"]["init_args"]["encoder"]["init_args"].get("weights"):
            args += ["--model.encoder.weights", "null"]
        if "size" in config["model"]["init_args"].get("views", {}).get("init_args", {}):
            args += ["--model.views.size", "64"]
        if "batch_norm_splits" in config["model"]["init_args"]:
            args += ["--model.batch_norm_splits", "2"]
    main(["fit", "--config", name, *args])


@pytest.mark.parametrize("name", config_names())
def test_config_begins_with_a_line_that_says_what_it_is(name):
    first = (CONFIGS / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) < 110
