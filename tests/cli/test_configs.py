"""Every packaged config says what it is and runs one batch of training, validation and test."""

import json

import pytest
import torch
import yaml
from torchvision.models import resnet18
from torchvision.utils import save_image

from recipes.cli import main
from recipes.cli.catalogue import config_file, config_names

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


@pytest.fixture(scope="module")
def teacher(pictures, tmp_path_factory):
    """Gives the run of a teacher for the digits, or for pictures with so many channels."""
    runs = tmp_path_factory.mktemp("teachers")

    def run(channels=None):
        folder = runs / str(channels)
        if not folder.exists():
            of_pictures = ["--data", "ImageFolder", "--data.root", pictures, "--data.image_size", 40]
            of_pictures += ["--data.channels", channels, "--model.encoder.in_channels", channels]
            options = ["--trainer.max_steps", 1, "--trainer.accelerator", "cpu", "--trainer.limit_test_batches", 0]
            options += ["--data.batch_size", 4, "--runs", folder, *(of_pictures if channels else [])]
            main(["fit", "--config", "supervised-digits", *map(str, options)])
        return folder / "supervised-digits"

    return run


def in_folders(sequence, data):
    """The options that have a sequence of tasks take its images from folders."""
    args = ["--data.base", "ImageFolder"]
    args += [part for key, value in data.items() for part in (f"--data.base.{key}", str(value))]
    args += ["--data.batch_size", "4"]
    if "then" in sequence:
        return [*args, "--data.then", json.dumps([{"class_path": "datamodules.ImageFolder", "init_args": data}])]
    if "classifier" in sequence:
        torch.save(resnet18(num_classes=2).state_dict(), "classifier.pt")  # in the folder of the test
        return [*args, "--data.classifier", "classifier.pt", "--data.class_names", '["car", "ship"]']
    if "class_groups" in sequence:
        return [*args, "--data.class_groups", '[["cat"], ["dog"]]']
    return [*args, *(["--data.num_tasks", "2"] if sequence.get("by", "classes") == "classes" else [])]


@pytest.mark.slow
@pytest.mark.parametrize("name", config_names())
def test_config_runs_one_batch(name, pictures, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(config_file(name).read_text())
    args = ["--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu"]
    init_args = config["model"]["init_args"]
    network = init_args["encoder"]["init_args"]
    channels = None
    in_tasks = config["data"]["class_path"] in ("datamodules.TaskSequence", "recipes.continual.AddedClasses")
    images = config["data"].get("init_args", {}).get("base", config["data"])
    if images["class_path"] != "datamodules.Digits":  # the others would have to be downloaded
        channels, size = network.get("in_channels", 3), network.get("image_size", 64)
        data = {"root": str(pictures), "image_size": size, "batch_size": 4, "channels": channels}
        if in_tasks:
            args += in_folders(config["data"]["init_args"], data)
        else:
            args += [part for key, value in data.items() for part in (f"--data.{key}", str(value))]
            args = ["--data", "ImageFolder", *args]
        if network.get("weights"):
            args += ["--model.encoder.weights", "null"]
        if "size" in init_args.get("views", {}).get("init_args", {}):
            args += ["--model.views.size", "64"]
        if "batch_norm_splits" in init_args:
            args += ["--model.batch_norm_splits", "2"]
    if "teacher" in init_args:
        args += ["--model.teacher", str(teacher(channels))]
    main(["fit", "--config", name, *args])


@pytest.mark.parametrize("name", config_names())
def test_config_begins_with_a_line_that_says_what_it_is(name):
    first = config_file(name).read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) < 110
