"""What sentences of the docs say about measurements holds for the files in results/."""

import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def values(study, metric):
    """The mean of a metric by variant, in per cent."""
    found = json.loads((ROOT / "results" / f"{study}.json").read_text())["variants"]
    return {name: 100 * v["measured"][metric]["mean"] for name, v in found.items() if metric in v["measured"]}


def gain(study, metric, better, than):
    """By how many points one variant is above another."""
    found = values(study, metric)
    return found[better] - found[than]


def share(study, student, labels, teacher):
    """The share of the gap between a student trained on labels and its teacher that another student closes."""
    metric = "test/accuracy"
    return gain(study, metric, student, labels) / gain(study, metric, teacher, labels)


def each_seed(study, metric, variant):
    found = json.loads((ROOT / "results" / f"{study}.json").read_text())["variants"][variant]["runs"]
    return [100 * run["metrics"][metric] for run in found]


def near(number, other, tolerance=0.5):
    return abs(number - other) <= tolerance


def methods(scenario, metric="test/average_accuracy", study="continual-mlp"):
    found = values(study, metric)
    return {name.split(": ")[0]: value for name, value in found.items() if name.endswith(f": {scenario}")}


def mythical(dataset, key):
    return (
        100 * json.loads((ROOT / "results" / "mythical.json").read_text())["datasets"][dataset]["measured"][key]["mean"]
    )


def cells(size=None, kinship=None):
    """Mean test accuracies of the strategies by pair and size, of cells with an advice of this kind for some seed."""
    found = {}
    for run in json.loads((ROOT / "results" / "quadrants.json").read_text())["cells"]:
        if size in (None, run["images_per_class"]) and kinship in (None, run["advice"]["kinship"]):
            found.setdefault((run["pair"], run["images_per_class"]), []).append(run["results"])
    return {
        cell: {name: statistics.fmean(100 * run[name]["test"] for run in runs) for name in runs[0]}
        for cell, runs in found.items()
    }


def of_four_quadrants(**which):
    """The cells of the first seven pairs."""
    pairs = {pair for pair, size in cells(size="all")}
    return {cell: found for cell, found in cells(**which).items() if cell[0] in pairs}


def of_unseen_pairs():
    """The cells of the pairs that the rule was not chosen on."""
    return {cell: found for cell, found in cells().items() if cell not in of_four_quadrants()}


def against_the_last_stage(strategy):
    """Points by which a strategy, or the best, is above fine-tuning the last stage, with ten similar images a class."""
    return {
        pair: (max(cell.values()) if strategy is max else cell[strategy]) - cell["fine-tune-last"]
        for (pair, _), cell in of_four_quadrants(size="10", kinship="similar").items()
    }


KNN, LINEAR, ACCURACY = "knn", "linear", "test/accuracy"
CALIBRATION, AGREEMENT = "test/calibration_error", "test/agreement"
LABELS, KD, CRD, ATTENTION = "hard labels", "soft targets (KD)", "contrastive (CRD)", "attention transfer"
FORGETTING = ("fine-tuning", "feature extraction", "joint")

SENTENCES = [
    (
        "Every method is at least nine points above the random encoder.",
        lambda: all(
            value - found["random encoder"] >= 9
            for found in (values("side-by-side", KNN), values("side-by-side", LINEAR))
            for name, value in found.items()
            if name != "random encoder"
        ),
    ),
    (
        "kNN misclassifies a quarter of the test images",
        lambda: 22 < 100 - values("byol-ablations", KNN)["no stop-gradient"] < 28,
    ),
    ("kNN loses one point", lambda: near(gain("byol-ablations", KNN, "BYOL", "no predictor"), 1)),
    (
        "reach a higher kNN accuracy than BYOL itself in 200 steps",
        lambda: min(gain("byol-ablations", KNN, name, "BYOL") for name in ("τ = 1", "with negatives")) > 0,
    ),
    (
        "SimCLR loses nothing at 32, and BYOL gains two points of kNN accuracy",
        lambda: (
            gain("batch-size", KNN, "SimCLR, 32", "SimCLR, 256") > -0.1
            and near(gain("batch-size", KNN, "BYOL, 32", "BYOL, 256"), 2)
        ),
    ),
    (
        "BYOL loses 3.4 points of kNN accuracy and 2.5 of linear accuracy, SimCLR 9.2 and 5.1",
        lambda: all(
            near(gain("colour-jitter", metric, name, f"{name}, no colour"), points, 0.05)
            for name, metric, points in (
                ("BYOL", KNN, 3.4),
                ("BYOL", LINEAR, 2.5),
                ("SimCLR", KNN, 9.2),
                ("SimCLR", LINEAR, 5.1),
            )
        ),
    ),
    (
        "SimCLR with the 126 negatives of a batch of 64 is 4 points of kNN accuracy ahead of MoCo v2",
        lambda: near(gain("queue", KNN, "SimCLR", "MoCo v2, queue"), 4),
    ),
    (
        "It loses only 1 point against 20 epochs of batches of 256",
        lambda: near(values("side-by-side", KNN)["SimCLR"] - values("queue", KNN)["SimCLR"], 1),
    ),
    (
        "With 100 or more images per class, fine-tuning all stages is the best strategy or within 1.1 points of it",
        lambda: all(
            max(cell.values()) - cell["fine-tune-all"] < 1.1
            for (_, size), cell in of_four_quadrants().items()
            if size != "10"
        ),
    ),
    (
        "training from scratch is as good or better by up to one point in every pair",
        lambda: all(
            -0.05 < cell["from-scratch"] - cell["fine-tune-all"] < 1.05
            for cell in of_four_quadrants(size="all").values()
        ),
    ),
    (
        "fine-tuning the last stage is the best strategy or within 0.6 points of it, except from Fashion-MNIST to",
        lambda: (
            [pair for pair, value in against_the_last_stage(max).items() if value > 0.65] == ["Fashion-MNIST to digits"]
        ),
    ),
    (
        "It is up to 7.5 points behind. An SVM is between 0.6 points ahead and 3.8 points behind.",
        lambda: (
            near(min(against_the_last_stage("feature-extraction").values()), -7.5, 0.051)
            and near(max(against_the_last_stage("svm").values()), 0.6, 0.05)
            and near(min(against_the_last_stage("svm").values()), -3.8, 0.05)
        ),
    ),
    (
        "Training from scratch is the best strategy in six cells, and 0.3 points behind in the other. Fine-tuning all",
        lambda: (
            sorted(near(max(cell.values()), cell["from-scratch"], 0.05) for cell in of_unseen_pairs().values())
            == [False] + 6 * [True]
            and near(max(max(cell.values()) - cell["from-scratch"] for cell in of_unseen_pairs().values()), 0.3, 0.05)
        ),
    ),
    (
        "stages is at most six points behind it",
        lambda: all(cell["from-scratch"] - cell["fine-tune-all"] < 6 for cell in of_unseen_pairs().values()),
    ),
    (
        "the last stage alone up to 23 points",
        lambda: near(max(cell["from-scratch"] - cell["fine-tune-last"] for cell in of_unseen_pairs().values()), 23),
    ),
    (
        "LwF gains 0.3 points of average accuracy in `task` and loses 0.4 in `domain`; iCaRL loses 0.6 in `class` and",
        lambda: all(
            near(
                found[f"{name}, weight decay 0: {scenario}"] - found[f"{name}, weight decay {given}: {scenario}"],
                gained,
                0.06,
            )
            for found in [values("continual-weight-decay", "test/average_accuracy")]
            for name, given, scenario, gained in (
                ("LwF", "5e-4", "task", 0.3),
                ("LwF", "5e-4", "domain", -0.4),
                ("iCaRL, 500", "1e-5", "task", 0),
                ("iCaRL, 500", "1e-5", "class", -0.6),
            )
        ),
    ),
    (
        "closes 60 % of the gap",
        lambda: near(share("hinton-digits", "student, soft targets", "student, hard labels", "teacher"), 0.6, 0.05),
    ),
    (
        "Soft targets close 60 % of the gap, and the calibration error is halved",
        lambda: (
            near(share("hinton-fashionmnist", "student, soft targets", "student, hard labels", "teacher"), 0.6, 0.05)
            and 0.45
            < values("hinton-fashionmnist", CALIBRATION)["student, soft targets"]
            / values("hinton-fashionmnist", CALIBRATION)["student, hard labels"]
            < 0.55
        ),
    ),
    (
        "the student classifies five of six images of the withheld class",
        lambda: all(
            near(1 - mythical(data, "errors_on_the_class") / 100, 5 / 6, 0.02) for data in ("digits", "Fashion-MNIST")
        ),
    ),
    (
        "Raising the bias removes a third of the remaining errors on the digit, and a quarter of those on dresses",
        lambda: all(
            abs(1 - mythical(data, "errors_on_the_class_after") / mythical(data, "errors_on_the_class") - part) < 0.02
            for data, part in (("digits", 1 / 3), ("Fashion-MNIST", 1 / 4))
        ),
    ),
    (
        "dresses gain 40 images, and the other classes lose 29",
        lambda: (
            near(
                10
                * (
                    mythical("Fashion-MNIST", "errors_on_the_class")
                    - mythical("Fashion-MNIST", "errors_on_the_class_after")
                ),
                40,
            )
            and near(40 - 100 * (mythical("Fashion-MNIST", "errors") - mythical("Fashion-MNIST", "errors_after")), 29)
        ),
    ),
    (
        "soft targets gain one point on average and contrast between the features (CRD) two",
        lambda: (
            near(gain("distillation", ACCURACY, KD, LABELS), 1) and near(gain("distillation", ACCURACY, CRD, LABELS), 2)
        ),
    ),
    (
        "This student agrees more often with the teacher, but it is not more accurate after 8 epochs",
        lambda: (
            gain("distillation", AGREEMENT, ATTENTION, LABELS) > 0 > gain("distillation", ACCURACY, ATTENTION, LABELS)
        ),
    ),
    (
        "the small student is best at T = 4 and two points worse at T = 20, for every seed",
        lambda: all(
            near(four - twenty, 2)
            for four, twenty in zip(
                *(each_seed("temperature", ACCURACY, f"5,000 parameters, T = {t}") for t in (4, 20)), strict=True
            )
        ),
    ),
    (
        "the vision transformer is 17 points behind a convolutional network",
        lambda: near(gain("deit", ACCURACY, "convolutional teacher", "ViT, labels alone"), 17),
    ),
    (
        "Hard distillation closes a third of the gap, soft distillation (with the paper's weight of 0.1) an eighth",
        lambda: all(
            abs(share("deit", f"ViT, {kind} distillation", "ViT, labels alone", "convolutional teacher") - part) < 0.02
            for kind, part in (("hard", 1 / 3), ("soft", 1 / 8))
        ),
    ),
    (
        "fine-tuning, EWC and SI stay at 20 %",
        lambda: all(near(methods("class")[name], 20) for name in ("fine-tuning", "EWC", "online EWC", "SI")),
    ),
    (
        "iCaRL and DER++ use 500 images better than plain rehearsal does",
        lambda: (
            min(methods("class")[name] for name in ("iCaRL, 500", "DER++, 500")) > methods("class")["rehearsal, 500"]
        ),
    ),
    (
        "EWC is ten points above fine-tuning",
        lambda: 9.5 <= methods("task")["EWC"] - methods("task")["fine-tuning"] < 11,
    ),
    (
        "Every method that counters forgetting comes within two and a half points of joint training",
        lambda: all(
            methods("task")["joint"] - v <= 2.5 for name, v in methods("task").items() if name not in FORGETTING
        ),
    ),
    (
        "fine-tuning reaches 75 %, EWC, LwF and SI are ten to fourteen points better",
        lambda: (
            near(methods("task", study="continual-cnn")["fine-tuning"], 75)
            and all(
                9.5
                <= methods("task", study="continual-cnn")[name] - methods("task", study="continual-cnn")["fine-tuning"]
                <= 14.5
                for name in ("EWC", "LwF", "SI", "online EWC")
            )
        ),
    ),
    (
        "LwF loses five points, and fine-tuning about ten or more",
        lambda: (
            all(near(values("lwf-related", "test/forgetting")[name], 5) for name in ("LwF", "LwF, no warm-up"))
            and min(values("lwf-related", "test/forgetting")[n] for n in ("fine-tuning", "fine-tuning, no warm-up"))
            > 9.5
        ),
    ),
    (
        "feature extraction is about eight points or more behind",
        lambda: (
            min(
                value - values("lwf-related", "test/task_2")["feature extraction"]
                for name, value in values("lwf-related", "test/task_2").items()
                if name != "feature extraction"
            )
            > 7.5
        ),
    ),
    (
        "Joint training is 1.6 points above it here",
        lambda: round(gain("lwf-related", "test/task_1", "joint", "feature extraction"), 1) == 1.6,
    ),
    (
        "LwF keeps three quarters of it, and loses ten more points without its warm-up. Fine-tuning keeps half.",
        lambda: (
            abs(values("lwf-unrelated", "test/task_1")["LwF"] / 88.9 - 0.75) < 0.02
            and near(gain("lwf-unrelated", "test/task_1", "LwF", "LwF, no warm-up"), 10)
            and abs(values("lwf-unrelated", "test/task_1")["fine-tuning"] / 88.9 - 0.5) < 0.02
        ),
    ),
]


@pytest.mark.parametrize(("sentence", "holds"), SENTENCES, ids=[sentence[:60] for sentence, _ in SENTENCES])
def test_a_sentence_of_the_results_holds_for_the_measurements(sentence, holds):
    text = re.sub(r"\s+", " ", (ROOT / "docs" / "results.md").read_text())
    assert sentence in text, "the sentence has changed: change or remove its check too"
    assert holds()
