"""The mythical class: a student that has never seen an image of a class, and what its bias hides.

Hinton et al. (2015, arXiv:1503.02531, Section 3) leave all threes out of the images that a student learns from. Its
teacher has seen threes, and what it says of other digits tells the student about them; only the bias of the class is
too low. Here the bias is raised by what makes the fewest mistakes on the validation images, and errors are those on the
test images; the paper chooses it on the test images.
"""

from pathlib import Path
from typing import Any

from recipes.evaluation.text_tables import cell, markdown
from recipes.launch import Job, KeptRuns
from recipes.launch.results import machine, summary, versions, write
from studies.base import KEPT, RESULTS
from studies.distillation import STUDIES, WITHOUT

RESULT = RESULTS / "mythical.json"
DATASETS = {"digits": "hinton-digits", "Fashion-MNIST": "hinton-fashionmnist"}  # the studies whose runs are read
CLASS, CLASSES = 3, {"hinton-digits": "3", "hinton-fashionmnist": "Dress"}
STEP, MOST = 0.1, 20.0  # of the biases that are tried


def measure(seeds: list[int], root: Path) -> dict[str, Any]:
    """Reads the runs that the studies kept, and writes results/mythical.json.

    Args:
        seeds: of the runs.
        root: folder of the data.
    """
    datasets = {}
    for name, study in DATASETS.items():
        each = [_errors(study, seed, root) for seed in seeds]
        datasets[name] = {
            "measured": {key: summary([one[key] for one in each]) for key in each[0]},
            "runs": [{"seed": seed, **one} for seed, one in zip(seeds, each, strict=True)],
            "command": f"scripts/reproduce {study}, and then scripts/reproduce mythical",
        }
    result = {
        "about": f"a student that has seen no image of class {CLASS}, and the bias of that class raised afterwards",
        "seeds": seeds,
        "classes": {name: CLASSES[study] for name, study in DATASETS.items()},
        "machine": machine(),
        "versions": versions(),
        "datasets": datasets,
    }
    write(RESULT, result)
    return result


def _errors(study: str, seed: int, root: Path) -> dict[str, float]:
    """Shares of test images that are mistaken, with the bias as it was learned and as it is raised."""
    import torch

    import recipes
    from recipes.base.checkpoint import checkpoint_path

    found = KeptRuns(STUDIES[study], KEPT).run(Job(WITHOUT, seed))
    if found is None:
        raise SystemExit(f"no run of seed {seed} is kept: scripts/reproduce {study} makes it")
    student: Any = recipes.load(checkpoint_path(found))
    data = _data(study, root)
    data.prepare_data()
    data.setup()

    def logits(part: Any) -> Any:
        with torch.no_grad():
            return torch.cat([student.classify(batch.image) for batch in data.in_order(part)]), part.label

    def errors(logits: Any, label: Any, bias: float) -> Any:
        raised = logits.clone()
        raised[:, CLASS] += bias
        return raised.argmax(1) != label

    validation, test = logits(data.splits.val), logits(data.splits.test)
    biases = [STEP * i for i in range(round(MOST / STEP) + 1)]
    best = min(biases, key=lambda bias: int(errors(*validation, bias).sum()))
    of_class = test[1] == CLASS
    before, after = errors(*test, 0.0), errors(*test, best)
    return {
        "errors": before.double().mean().item(),
        "errors_on_the_class": before[of_class].double().mean().item(),
        "bias_raised_by": best,
        "errors_after": after.double().mean().item(),
        "errors_on_the_class_after": after[of_class].double().mean().item(),
    }


def _data(study: str, root: Path) -> Any:
    from datamodules import Digits, FashionMNIST

    return Digits(size=16) if study == "hinton-digits" else FashionMNIST(root)


def table(result: dict[str, Any]) -> str:
    """Errors of students that have seen no image of a class, before and after its bias is raised."""
    columns = {
        "errors": "errors (%)",
        "errors_on_the_class": "of the class",
        "errors_after": "bias raised: errors (%)",
        "errors_on_the_class_after": "of the class",
    }
    rows = [
        [
            f"{name}, {result['classes'][name]}",
            *(cell(entry["measured"][key], 100, 1) for key in columns),
            cell(entry["measured"]["bias_raised_by"], 1, 1),
        ]
        for name, entry in result["datasets"].items()
    ]
    return (
        "**The mythical class**: students that have seen no image of one class\n\n"
        + markdown(["", *columns.values(), "raised by"], rows)
        + f"\nOn the test images, mean ± standard deviation over {len(result['seeds'])} seeds; the bias is chosen on "
        "the validation images. `scripts/reproduce mythical`.\n"
    )
