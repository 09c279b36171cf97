"""Reports the results of a classifier for each class, and its worst mistakes."""

import json
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from recipes.base.classifier import Classifier
from recipes.callbacks.reporting.files import file_names, images_of, picture_directory, save
from recipes.callbacks.running.feature_collector import FeatureCollector
from recipes.evaluation.classification import Mistake, confusion, scores
from recipes.plots.classes import confusion_matrix, mistake_sheet


class ClassReport(Callback):
    """Reports the confusion matrix and results per class after the test; does nothing for recipes without classifier.

    ``classes.json`` in the run directory has:

    * for each class precision, recall, F1 and the number of test images (``support``); null if the divisor is zero;
    * ``macro``: the means of these numbers over the classes that have a value;
    * the confusion matrix, with one row for each true class;
    * the worst mistakes: the misclassified images with the highest ``confidence`` (the probability of the predicted
      class) or, for a classifier without probabilities, the highest ``score``.

    ``pictures/confusion.png`` shows the confusion matrix, and ``pictures/mistakes.png`` the images of the worst
    mistakes. Both are also logged to Weights & Biases if a ``WandbLogger`` is used. Test images without a label are
    skipped. Nothing is written under ``fast_dev_run``.

    Args:
        mistakes: largest number of worst mistakes in the report, >= 0. With 0, mistakes are not reported.

    Raises:
        ValueError: if ``mistakes`` is negative.
    """

    def __init__(self, mistakes: int = 24) -> None:
        if mistakes < 0:
            raise ValueError(f"mistakes is {mistakes}: it must be at least 0 (leaves the sheet of mistakes out)")
        self.mistakes = mistakes

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for the logits."""
        if isinstance(pl_module, Classifier):
            FeatureCollector.of(trainer).collect("logits")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the report."""
        if not isinstance(pl_module, Classifier):
            return
        images = FeatureCollector.of(trainer)
        logits, label, index = images.gather()["logits"].labelled().to("cpu")
        pictures = picture_directory(trainer)
        if pictures is None or not len(label):
            return
        confidence, predicted = (logits.softmax(1) if pl_module.has_probabilities else logits).max(1)
        classes = pl_module.head.out_features
        names = pl_module.class_names or [str(number) for number in range(classes)]
        matrix = confusion(label, predicted, classes)
        wrong = (predicted != label).nonzero().flatten()
        worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][: self.mistakes]
        loader: Any = trainer.test_dataloaders
        files = file_names(getattr(trainer, "datamodule", None), loader)
        mistakes = [
            Mistake(
                index=(i := int(index[row])),
                file=files[i] if files else None,
                true=names[label[row]],
                predicted=names[predicted[row]],
                confidence=confidence[row].item(),
            )
            for row in worst
        ]
        number = "confidence" if pl_module.has_probabilities else "score"
        listed = [
            {number if key == "confidence" else key: value for key, value in mistake._asdict().items()}
            for mistake in mistakes
        ]
        report = {**scores(matrix, names), "mistakes": listed}
        if images.subset:
            report["subset"] = images.subset
        pictures.mkdir(parents=True, exist_ok=True)
        (pictures.parent / "classes.json").write_text(json.dumps(report, indent=2) + "\n")
        save(confusion_matrix(matrix, names), pictures / "confusion.png", trainer)
        read = images_of(loader)
        if mistakes and read is not None:
            ranked = "most confident" if pl_module.has_probabilities else "highest-scored"
            title = f"The {len(mistakes)} {ranked} of {len(wrong):,} mistakes"
            if len(mistakes) == len(wrong):
                title = "The only mistake" if len(wrong) == 1 else f"All {len(wrong)} mistakes"
            title += f" on {len(label):,} test images"
            sheet = mistake_sheet(read(index[worst]), mistakes, title, pl_module.has_probabilities)
            save(sheet, pictures / "mistakes.png", trainer)
