import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from matplotlib.text import Text
from PIL import Image
from torch import nn

from datamodules import ImageDataModule, ImageFolder, ImagesInMemory
from datamodules.base import Splits
from recipes import SVM, SimCLR, Supervised
from recipes.callbacks.reporting import class_report
from recipes.callbacks.reporting.class_report import ClassReport
from recipes.nn import Encoder
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.draws

NAMES = ("cat", "dog", "owl")
# the brightest pixel of an image is the class that it is taken for
PIXELS = [[200, 0, 0], [90, 100, 0], [0, 250, 10], [0, 0, 200], [0, 0, 255], [30, 20, 10], [100, 0, 90]]
LABELS = [0, 0, 0, 1, -1, 1, 0]


class Known(ImageDataModule):
    """Images of one line, whose pixels are the logits up to scale and shift."""

    def __init__(self, label: list[int] = LABELS) -> None:
        super().__init__(batch_size=4)
        self.label = label

    def load(self) -> Splits:
        images = torch.tensor(PIXELS, dtype=torch.uint8)[:, None, None]
        images = ImagesInMemory(images, torch.tensor(self.label))
        return Splits(NAMES, images, None, images)


def classifier(network: nn.Module | None = None) -> Any:
    recipe = Supervised(Encoder(network or nn.Flatten(), 3, 1), 3)
    nn.init.eye_(recipe.head.weight)
    nn.init.zeros_(recipe.head.bias)
    return recipe


def evaluate(path: Path, recipe: Any = None, data: Any = None, mistakes: int = 24, **options: Any) -> None:
    trainer = quiet_trainer(callbacks=[ClassReport(mistakes)], default_root_dir=path, **options)
    trainer.test(recipe or classifier(), data or Known(), verbose=False)


def report(path: Path) -> dict[str, Any]:
    return json.loads((path / "classes.json").read_text())


def pictures(path: Path) -> set[str]:
    return {file.name for file in path.glob("pictures/*")}


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.slow
def test_the_report_counts_every_labelled_test_image_once(tmp_path: Path) -> None:
    evaluate(tmp_path)
    result = report(tmp_path)
    assert result["confusion"] == [[2, 2, 0], [1, 0, 1], [0, 0, 0]]
    assert (result["images"], result["accuracy"]) == (6, pytest.approx(2 / 6))
    cat, dog, owl = result["classes"]
    assert cat == {"name": "cat", "precision": pytest.approx(2 / 3), "recall": 0.5, "f1": pytest.approx(4 / 7),
                   "support": 4}  # fmt: skip
    assert dog == {"name": "dog", "precision": 0, "recall": 0, "f1": 0, "support": 2}
    assert owl == {"name": "owl", "precision": 0, "recall": None, "f1": 0, "support": 0}
    assert result["macro"]["recall"] == 0.25  # of the two classes that have images
    assert pictures(tmp_path) == {"confusion.png", "mistakes.png"}


def test_the_worst_mistakes_are_those_with_the_highest_probability_of_a_wrong_class(tmp_path: Path) -> None:
    evaluate(tmp_path, mistakes=3)
    pixels = np.array(PIXELS) / 255
    logits = (pixels - pixels.mean()) / pixels.std()
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wrong = [2, 3, 1, 5]
    order = sorted(wrong, key=lambda i: -probability[i].max())[:3]
    assert order == [2, 3, 1]  # not that of the dataset
    found = report(tmp_path)["mistakes"]
    assert [mistake["index"] for mistake in found] == order
    assert [(mistake["true"], mistake["predicted"]) for mistake in found] == [
        ("cat", "dog"),
        ("dog", "owl"),
        ("cat", "dog"),
    ]
    assert [mistake["confidence"] for mistake in found] == pytest.approx(probability[order].max(1), rel=1e-5)


def test_the_sheet_shows_the_images_of_the_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    monkeypatch.setattr(class_report, "save", lambda figure, path, trainer: drawn.update({path.name: figure}))
    evaluate(tmp_path)
    figure = drawn["mistakes.png"]
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert [(255 * image[0]).round().astype(int).tolist() for image in shown] == [PIXELS[i] for i in (2, 3, 1, 5)]
    assert any(text.startswith("All 4 mistakes on 6 test images") for text in texts(figure))


def test_without_probabilities_report_and_sheet_say_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    monkeypatch.setattr(class_report, "save", lambda figure, path, trainer: drawn.update({path.name: figure}))
    recipe = SVM(Encoder(nn.Flatten(), 3, 1), 3)
    recipe.load_state_dict(classifier().state_dict())
    evaluate(tmp_path, recipe)
    pixels = np.array(PIXELS) / 255
    values = (pixels - pixels.mean()) / pixels.std()
    worst = max((2, 3, 1, 5), key=lambda i: values[i].max())
    assert report(tmp_path)["mistakes"][0]["score"] == pytest.approx(values[worst].max(), rel=1e-5)
    assert "confidence" not in report(tmp_path)["mistakes"][0]
    said = " ".join(texts(drawn["mistakes.png"]))
    assert f"  {values[worst].max():.2f}" in said
    assert "predicted class and its score" in said
    assert "%" not in said


def report_of_two(path: Path) -> None:
    seed_everything(0, verbose=False)
    evaluate(path, devices=2, strategy="ddp")


def test_two_processes_report_what_one_reports(tmp_path: Path) -> None:
    """Of 7 images, in batches of 4 and 3."""
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        if processes == 1:
            evaluate(folder)
        else:
            run(report_of_two, folder, processes=2)
    assert report(tmp_path / "1") == report(tmp_path / "2")
    assert pictures(tmp_path / "1") == pictures(tmp_path / "2")


@pytest.mark.slow
def test_the_report_names_the_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("cat", "dog", "owl"):
        for split in ("train", "test"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            pixel = np.array([[0, 0, 255]], np.uint8)  # all are taken for owls
            Image.fromarray(pixel.repeat(3, 0)).save(tmp_path / "data" / split / name / "a.png")
    recipe = classifier(nn.Sequential(nn.AvgPool2d((3, 1)), nn.Flatten()))
    evaluate(tmp_path, recipe, ImageFolder(tmp_path / "data", image_size=3, channels=1, batch_size=2))
    assert {mistake["file"] for mistake in report(tmp_path)["mistakes"]} == {"test/cat/a.png", "test/dog/a.png"}


@pytest.mark.slow
def test_features_in_half_precision_are_classified_in_the_precision_of_the_run(tmp_path: Path) -> None:
    recipe = classifier(nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False)))
    nn.init.eye_(recipe.encoder.network[1].weight)
    evaluate(tmp_path, recipe, precision="bf16-mixed")
    assert report(tmp_path)["confusion"] == [[2, 2, 0], [1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("label", "heading"), [([0, 1, 1, 2, 2, 0, 0], None), ([0, 0, 1, 2, 2, 0, 0], "The only mistake")]
)
def test_no_mistake_and_one_mistake_are_reported(
    label: list[int], heading: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {}
    monkeypatch.setattr(class_report, "save", lambda figure, path, trainer: drawn.update({path.name: figure}))
    evaluate(tmp_path, data=Known(label))
    assert ("mistakes.png" in drawn) == (heading is not None)
    assert len(report(tmp_path)["mistakes"]) == (heading is not None)
    if heading:
        assert any(text.startswith(heading) for text in texts(drawn["mistakes.png"]))


def test_without_labels_there_is_no_report(tmp_path: Path) -> None:
    evaluate(tmp_path, data=Known([-1] * 7))
    assert list(tmp_path.iterdir()) == []


def test_a_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    evaluate(tmp_path, fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_without_a_classifier_has_no_report(tmp_path: Path) -> None:
    evaluate(tmp_path, SimCLR(Encoder(nn.Flatten(), 3, 1)))
    assert list(tmp_path.iterdir()) == []


def test_no_sheet_of_mistakes_is_made_where_none_is_wanted(tmp_path: Path) -> None:
    evaluate(tmp_path, mistakes=0)
    assert pictures(tmp_path) == {"confusion.png"}
    assert report(tmp_path)["mistakes"] == []


def test_a_negative_number_of_mistakes_is_refused() -> None:
    with pytest.raises(ValueError, match="mistakes is -1: it must be at least 0"):
        ClassReport(mistakes=-1)


def test_a_classifier_whose_data_has_no_names_is_reported_by_number(tmp_path: Path) -> None:
    class Unnamed(Known):
        class_names = ()  # type: ignore[assignment]
        num_classes = 3  # type: ignore[assignment]

    evaluate(tmp_path, data=Unnamed())
    assert [each["name"] for each in report(tmp_path)["classes"]] == ["0", "1", "2"]
