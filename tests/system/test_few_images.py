"""Two devices measure what one measures on any number of images, down to a single one for both of them.

Every network encodes each test image once, whoever reports on it.
"""

import csv
import json
import math

import pytest

from recipes.cli import main
from tests.helpers.drawing import draw_nothing
from tests.helpers.processes import run
from tests.system.exactness import RECIPES, TEACHER, arguments, packaged

OPTIONS = {
    "trainer.precision": "64-true",
    "trainer.accelerator": "cpu",
    "trainer.max_steps": 2,
    "trainer.val_check_interval": 2,
    "trainer.check_val_every_n_epoch": "null",
    "trainer.log_every_n_steps": 1,
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "probe.labels_per_class": "[]",
    "probe.references": "false",
    "model.scheduler": "null",
    "data.batch_size": 96,
}
OF_ONE_RUN = {"seconds", "minutes", "training_minutes", "devices", "machine", "train/data_wait"}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def fit(args, draws=False):
    draw_nothing(not draws)
    main(args)


def numbers(folder):
    """What a run measured, by file and place."""
    (metrics,) = folder.glob("*/*/metrics.csv")
    with metrics.open() as file:
        found = {"metrics": [{name: float(x) for name, x in row.items() if x} for row in csv.DictReader(file)]}
    for path in metrics.parent.glob("*.json"):
        found[path.name] = json.loads(path.read_text())
    return dict(leaves(found))


def leaves(tree, *place):
    if isinstance(tree, dict | list):
        for name, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if name not in OF_ONE_RUN:
                yield from leaves(part, *place, name)
    elif not isinstance(tree, float) or not math.isnan(tree):
        yield place, tree


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The run of a teacher for the digits."""
    folder = tmp_path_factory.mktemp("teacher")
    run(fit, arguments(TEACHER, folder, OPTIONS, {"trainer.limit_test_batches": 0}))
    return folder / TEACHER


@pytest.mark.slow
@pytest.mark.parametrize(("config", "count"), [*((config, 1) for config in RECIPES), (TEACHER, 3)])
def test_two_devices_measure_what_one_measures(config, count, teacher, tmp_path):
    has_teacher = "teacher" in packaged(config)["model"]["init_args"]
    changed = {"model.teacher": teacher} if has_teacher else {}
    few = {"class_path": "tests.system.few_images.FewImages", "init_args": {"count": count}}
    passes = {"class_path": "tests.system.passes.Passes", "init_args": {"path": str(tmp_path / "passes.json")}}
    found = []
    for processes, callbacks in ((1, [few, passes]), (2, [few])):
        changed["trainer.callbacks"] = json.dumps(callbacks)
        devices = {"trainer.devices": processes} | ({"trainer.strategy": "ddp"} if processes > 1 else {})
        args = arguments(config, tmp_path / str(processes), OPTIONS, changed | devices)
        run(fit, args, processes == 1, processes=processes, timeout=100)
        found.append(numbers(tmp_path / str(processes)))
    one, two = found
    assert any(str(place[-1]).startswith("val/") for place in one)
    assert any(str(place[-1]).startswith("test/") for place in one)
    assert one.keys() == two.keys()
    close = {place: pytest.approx(x, rel=1e-8, abs=1e-10) if isinstance(x, float) else x for place, x in one.items()}
    assert {place: (one[place], x) for place, x in two.items() if x != close[place]} == {}
    passed = json.loads((tmp_path / "passes.json").read_text())
    assert passed["encoder"] == [1, 1]
    assert all(least == most <= 1 for least, most in passed.values())
    assert ("teacher 0" in passed) == has_teacher
