import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from matplotlib.text import Text
from torch import Tensor, nn

from datamodules import ImageDataModule, ImagesInMemory
from datamodules.base import Splits
from recipes import Supervised, TeacherStudent
from recipes.callbacks import DistillationReport
from recipes.callbacks.reporting import distillation_report
from recipes.distillation.teacher import Teacher
from recipes.evaluation.calibration import TEMPERATURES
from recipes.nn import Encoder
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.draws

NAMES = ("cat", "dog", "owl")
PIXELS = torch.randint(0, 256, (40, 1, 1, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.randint(-1, 3, (40,), generator=torch.Generator().manual_seed(1))
TEST, VAL = slice(0, 23), slice(23, 40)


class Known(ImageDataModule):
    """Images of one line, whose pixels are logits up to scale and shift."""

    def __init__(self, val: bool = True, label: Tensor = LABELS) -> None:
        super().__init__(batch_size=4)
        self.val, self.label = val, label

    def load(self) -> Splits:
        test, val = (ImagesInMemory(PIXELS[part], self.label[part]) for part in (TEST, VAL))
        return Splits(NAMES, ImagesInMemory(PIXELS, LABELS), val if self.val else None, test)


def classifier() -> Any:
    recipe = Supervised(Encoder(nn.Flatten(), 3, 1), 3)
    nn.init.eye_(recipe.head.weight)
    nn.init.zeros_(recipe.head.bias)
    return recipe


class Taught(Supervised):
    """A teacher that says of an image what its pixels are in reverse, times 6."""

    has_teacher = True

    def teacher_logits(self, image: Tensor) -> Tensor:
        return 6 * image.flatten(1).flip(1).float() / 255


def taught() -> Any:
    recipe = Taught(Encoder(nn.Flatten(), 3, 1), 3)
    recipe.load_state_dict(classifier().state_dict())
    return recipe


def evaluate(path: Path, recipe: Any = None, data: Any = None, **options: Any) -> None:
    trainer = quiet_trainer(callbacks=[DistillationReport()], default_root_dir=path, **options)
    trainer.test(recipe or taught(), data or Known(), verbose=False)


def report(path: Path) -> dict[str, Any]:
    return json.loads((path / "distillation.json").read_text())


def pictures(path: Path) -> set[str]:
    return {file.name for file in path.glob("pictures/*")}


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The figures, by the names of their files, none of which is written: that takes long."""
    figures: dict[str, Any] = {}
    monkeypatch.setattr(distillation_report, "save", lambda figure, path, trainer: figures.update({path.name: figure}))
    return figures


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max())
    return exp / exp.sum()


def expected_logits(part: slice) -> dict[str, np.ndarray]:
    """Logits of both networks for the labelled images of a split."""
    pixels = PIXELS.flatten(1).double().numpy() / 255
    mean, std = pixels.mean(), pixels.std()
    labelled = (LABELS[part] >= 0).numpy()
    return {"teacher": 6 * pixels[part][labelled][:, ::-1], "student": (pixels[part][labelled] - mean) / std}


def error_by_hand(logits: np.ndarray, label: np.ndarray, temperature: float = 1.0) -> float:
    """Bin by bin: how far accuracy and mean confidence are apart, weighed by the share of the images."""
    total = 0.0
    probability = [softmax(row / temperature) for row in logits]
    for m in range(15):
        inside = [i for i, p in enumerate(probability) if m / 15 < p.max() <= (m + 1) / 15]
        if inside:
            right = sum(probability[i].argmax() == label[i] for i in inside) / len(inside)
            sure = sum(probability[i].max() for i in inside) / len(inside)
            total += len(inside) / len(logits) * abs(right - sure)
    return total


@pytest.mark.slow
def test_the_report_has_the_numbers_of_their_definitions(tmp_path: Path) -> None:
    evaluate(tmp_path)
    found = report(tmp_path)
    logits, val = expected_logits(TEST), expected_logits(VAL)
    label, val_label = (LABELS[part][LABELS[part] >= 0].numpy() for part in (TEST, VAL))
    count = len(label)
    assert (found["split"], found["images"]) == ("test", count)
    assert count < 23  # some have no label
    same = sum(a.argmax() == b.argmax() for a, b in zip(logits["teacher"], logits["student"]))
    assert 0 < same < count
    assert found["agreement"] == pytest.approx(same / count)
    temperatures = np.exp(np.linspace(np.log(0.01), np.log(100), 4001))
    assert found["fitted_temperature"]["validation_images"] == len(val_label)
    for name in ("teacher", "student"):
        right = sum(row.argmax() == true for row, true in zip(logits[name], label))
        assert found["accuracy"][name] == pytest.approx(right / count)
        likelihood = [
            sum(np.log(softmax(row / t)[true]) for row, true in zip(val[name], val_label)) for t in temperatures
        ]
        best = temperatures[int(np.argmax(likelihood))]
        fitted = found["fitted_temperature"][name]
        assert fitted == pytest.approx(best, rel=3e-3)
        errors = found["calibration_error"][name]
        assert errors["before"] == pytest.approx(error_by_hand(logits[name], label), abs=1e-5)
        assert errors["after"] == pytest.approx(error_by_hand(logits[name], label, fitted), abs=1e-5)
    for t in (1, 4, 20, 40):
        bits = [-sum(p * math.log2(p) for p in softmax(row / t)) for row in logits["teacher"]]
        assert found["teacher_entropy_bits"][str(t)] == pytest.approx(sum(bits) / count, rel=1e-6)
    assert pictures(tmp_path) == {"agreement.png", "calibration.png", "temperature.png"}


@pytest.mark.slow
def test_without_validation_images_there_is_nothing_after(tmp_path: Path, drawn: dict[str, Any]) -> None:
    evaluate(tmp_path, data=Known(val=False))
    found = report(tmp_path)
    assert found["fitted_temperature"] == {"validation_images": 0, "teacher": None, "student": None}
    for name in ("teacher", "student"):
        assert found["calibration_error"][name]["before"] > 0
        assert found["calibration_error"][name]["after"] is None
    assert drawn.keys() == {"agreement.png", "calibration.png", "temperature.png"}
    assert [axes.get_title().split("\n")[0] for axes in drawn["calibration.png"].axes] == [
        "teacher, as it is",
        "student, as it is",
    ]


def test_validation_images_without_labels_count_as_none(tmp_path: Path, drawn: dict[str, Any]) -> None:
    label = LABELS.clone()
    label[VAL] = -1
    evaluate(tmp_path, data=Known(label=label))
    assert report(tmp_path)["fitted_temperature"] == {"validation_images": 0, "teacher": None, "student": None}


def test_a_student_with_the_weights_of_its_teacher_agrees_with_it(tmp_path: Path, drawn: dict[str, Any]) -> None:
    teacher, data = classifier(), Known()
    data.setup()
    teacher.normalize.set(data.mean, data.std)
    student = TeacherStudent(Encoder(nn.Flatten(), 3, 1), 3, Teacher([teacher], ["here"]))
    student.load_state_dict(teacher.state_dict(), strict=False)
    evaluate(tmp_path, student, data)
    found = report(tmp_path)
    assert found["agreement"] == 1
    assert found["fitted_temperature"]["teacher"] == pytest.approx(found["fitted_temperature"]["student"])


def report_of_two(path: Path) -> None:
    seed_everything(0, verbose=False)
    distillation_report.save = lambda figure, path, trainer: None  # type: ignore[assignment]
    evaluate(path, devices=2, strategy="ddp")


def test_two_processes_report_what_one_reports(tmp_path: Path, drawn: dict[str, Any]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    evaluate(tmp_path / "one")
    run(report_of_two, tmp_path / "two", processes=2)
    one, two = (json.loads((tmp_path / name / "distillation.json").read_text()) for name in ("one", "two"))
    assert one.pop("split") == two.pop("split")
    assert one.pop("images") == two.pop("images")
    assert one.pop("agreement") == two.pop("agreement")
    assert one.keys() == two.keys()
    errors = one.pop("calibration_error"), two.pop("calibration_error")
    assert errors[0].keys() == errors[1].keys() == {"bins", "teacher", "student"}
    for name in ("teacher", "student"):
        assert errors[1][name] == pytest.approx(errors[0][name], abs=1e-6)
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-5)


def test_a_recipe_without_a_teacher_has_no_report(tmp_path: Path) -> None:
    evaluate(tmp_path, classifier())
    absent = taught()
    absent.has_teacher = False
    evaluate(tmp_path, absent)
    assert list(tmp_path.iterdir()) == []


def test_without_test_labels_there_is_no_report(tmp_path: Path) -> None:
    evaluate(tmp_path, data=Known(label=torch.full_like(LABELS, -1)))
    assert list(tmp_path.iterdir()) == []


def test_a_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    evaluate(tmp_path, fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_bars_are_the_probabilities_and_green_is_the_right_class(tmp_path: Path, drawn: dict[str, Any]) -> None:
    evaluate(tmp_path)
    axes = drawn["temperature.png"].axes
    assert len(axes) == 6 * (1 + len(TEMPERATURES))
    labelled = (LABELS[TEST] >= 0).nonzero().flatten()
    logits = expected_logits(TEST)["teacher"]
    bits = [-sum(p * math.log2(p) for p in softmax(row)) for row in logits]
    order = sorted(range(len(logits)), key=bits.__getitem__)
    chosen = [order[round(i * (len(order) - 1) / 5)] for i in range(6)]
    for row, i in enumerate(chosen):
        image, *panels = axes[5 * row : 5 * row + 5]
        shown = image.images[0].get_array()
        assert (255 * shown[0]).round().astype(int).tolist() == PIXELS[labelled[i]].flatten().tolist()
        true = int(LABELS[labelled[i]])
        assert image.get_xlabel() == NAMES[true]
        for panel, t in zip(panels, TEMPERATURES):
            assert [bar.get_width() for bar in panel.patches] == pytest.approx(softmax(logits[i] / t), rel=1e-5)
            green = [bar.get_facecolor()[1] > 1.2 * bar.get_facecolor()[2] for bar in panel.patches]
            assert green == [number == true for number in range(3)]
        assert panels[0].get_title().endswith(f"{bits[i]:.2f} bits")
