"""From pictures in class folders to a table of what is on other pictures."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

COLOURS = {"blue": (20, 20, 230), "green": (20, 200, 20), "red, or so": (230, 20, 20)}
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def squares(root: Path, folders: dict[str, str], count: int) -> Path:
    """Pictures of one colour with noise, in the folder that each colour has."""
    generator = np.random.default_rng(len(folders) + count)
    for colour, folder in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise = generator.integers(-20, 21, (10, 10, 3))
            pixels = np.clip(noise + COLOURS[colour], 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{colour} {i}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A classifier of coloured squares."""
    folder = tmp_path_factory.mktemp("run")
    pictures = squares(folder / "pictures", {colour: colour for colour in COLOURS}, 16)
    encoder = ["--model.encoder", "ConvNet", "--model.encoder.in_channels", "3", "--model.encoder.widths", "[8]"]
    data = ["--data", "ImageFolder", "--data.root", str(pictures), "--data.image_size", "8", "--data.batch_size", "8"]
    model = ["--model", "Supervised", *encoder, "--model.lr_batch_size", "null", "--model.scheduler", "null"]
    main(["fit", "--runs", str(folder / "runs"), *model, *data, "--trainer.max_epochs", "12", *QUIET])
    (directory,) = folder.glob("runs/*/*")
    return directory


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def predict(run, root, *args):
    main(["predict", "--ckpt_path", str(run), "--data.root", str(root), "--runs", "runs", *QUIET, *args])


def predicted(tmp_path):
    (path,) = tmp_path.glob("runs/*/*/predictions.csv")
    with path.open(newline="") as file:
        return {row["file"]: (row["class"], float(row["probability"])) for row in csv.DictReader(file)}


def test_the_class_of_every_unlabelled_picture_is_written_to_a_table(run, tmp_path):
    squares(tmp_path / "new-pictures", dict.fromkeys(COLOURS, "."), 2)
    predict(run, "new-pictures/")
    rows = predicted(tmp_path)
    assert set(rows) == {f"{colour} {i}.png" for colour in COLOURS for i in range(2)}
    for file, (name, probability) in rows.items():
        assert name == file[:-6]
        assert 1 / 3 < probability <= 1


def test_predicts_the_test_images_of_folders_with_the_classes_of_the_checkpoint(run, tmp_path):
    squares(tmp_path / "new", {colour: colour for colour in COLOURS}, 10)
    predict(run, "new")
    assert len(predicted(tmp_path)) == 3  # a tenth
    assert all(file.startswith(f"{name}/{name}") for file, (name, _) in predicted(tmp_path).items())


@pytest.mark.parametrize(
    ("folders", "theirs"),
    [
        ({"blue": "blue"}, r"1 class \(blue\)"),
        ({"blue": "blue", "green": "green"}, r"2 classes \(blue, green\)"),
        ({"blue": "a", "green": "b", "red, or so": "c"}, r"3 classes \(a, b, c\)"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "test"])
def test_class_folders_with_other_classes_than_the_checkpoint_are_refused(
    command, folders, theirs, run, tmp_path, capsys
):
    squares(tmp_path / "new", folders, 10)
    with pytest.raises(SystemExit):
        main([command, "--ckpt_path", str(run), "--data.root", "new", "--probe.references", "false", *QUIET])
    error = capsys.readouterr().err
    assert error.count("recipes: error") == 1
    line = next(line for line in error.splitlines() if line.startswith("recipes: error"))
    assert re.search(rf"the checkpoint knows 3 classes \(blue, green, red, or so\), and the data has {theirs}", line)
    assert "pictures without class folders" in line


def test_an_empty_folder_is_refused_in_one_line(run, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    with pytest.raises(SystemExit):
        predict(run, "new")
    assert "recipes: error: new holds no images" in capsys.readouterr().err
