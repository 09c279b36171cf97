"""Recipes on loaders that are no DataModule, and on batches that are too small."""

import inspect
from itertools import count

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import recipes
from datamodules import Batch, Digits
from datamodules.loading.plain import as_batch
from recipes import BYOL, InstanceDiscrimination, MoCo, Recipe, SimCLR, Supervised
from recipes.errors import Diverged
from recipes.nn import ConvNet
from recipes.optim import WarmupCosine
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore")

ALONE = [  # recipes that need nothing but an encoder and, some, a number of classes
    recipe
    for recipe in vars(recipes).values()
    if inspect.isclass(recipe)
    and issubclass(recipe, Recipe)
    and recipe is not Recipe
    and {
        name
        for name, argument in inspect.signature(recipe.__init__).parameters.items()
        if argument.default is argument.empty and name != "self"
    }
    <= {"encoder", "num_classes"}
    and recipe.__name__ != "SVM"  # reads the images of a DataModule before training, and says so
]


OWN = {InstanceDiscrimination: {"num_images": 8}, MoCo: {"batch_norm_splits": 2}}
NEED_MORE = {"InstanceDiscrimination": r"\(image, label, index\) .* or a DataModule"}


def build(recipe, **arguments):
    if "num_classes" in inspect.signature(recipe.__init__).parameters:
        arguments["num_classes"] = 2
    return recipe(encoder=ConvNet(in_channels=1), **arguments)


def pairs(count=8, batch_size=4, image=None, label=None):
    image = torch.randint(0, 256, (count, 1, 16, 16), dtype=torch.uint8) if image is None else image
    label = torch.arange(count) % 2 if label is None else label
    return DataLoader(TensorDataset(image, label), batch_size=batch_size)


def fit(recipe, loader, path, **options):
    trainer = quiet_trainer(max_steps=2, default_root_dir=path, **options)
    trainer.fit(recipe, loader, *[loader] if options.get("limit_val_batches") != 0 else [])
    return trainer


@pytest.mark.parametrize("recipe", ALONE, ids=lambda recipe: recipe.__name__)
def test_a_run_that_diverges_says_so_without_a_callback_and_logs_nothing_for_it(recipe, tmp_path):
    trained = build(recipe, **OWN.get(recipe, {}))
    with torch.no_grad():
        next(trained.encoder.parameters()).fill_(torch.nan)
    image, label = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8), torch.arange(8) % 2
    loader = DataLoader(TensorDataset(image, label, torch.arange(8)), batch_size=4)
    trainer = quiet_trainer(max_steps=4, default_root_dir=tmp_path, limit_val_batches=0, log_every_n_steps=1)
    with pytest.raises(Diverged, match="at step 1 .* a lower learning rate"):
        trainer.fit(trained, loader)
    assert not {"train/grad_norm", "train/data_wait"} & trainer.logged_metrics.keys()


def test_weights_that_are_not_finite_are_refused_without_a_callback(tmp_path):
    recipe = build(Supervised)
    with torch.no_grad():
        next(recipe.encoder.parameters()).fill_(torch.nan)
    for command in ("validate", "test", "predict"):
        trainer = quiet_trainer(default_root_dir=tmp_path)
        with pytest.raises(ValueError, match=r"not finite \(encoder"):
            getattr(trainer, command)(recipe, pairs())


@pytest.mark.parametrize("recipe", ALONE, ids=lambda recipe: recipe.__name__)
def test_several_loaders_for_one_evaluation_are_refused_in_words_and_one_in_a_list_is_not(recipe, tmp_path):
    trained, two = build(recipe, **OWN.get(recipe, {})), [pairs(), pairs()]
    words = f"there are 2 {{}} loaders: {recipe.__name__} measures one. Give one loader"
    for loaders in (two, {"a": two[0], "b": two[1]}):
        with pytest.raises(ValueError, match=words.format("validation")):
            quiet_trainer(max_steps=1, default_root_dir=tmp_path).fit(trained, pairs(), loaders)
    for stage, name in (("validate", "validation"), ("test", "test"), ("predict", "predict")):
        trainer = quiet_trainer(default_root_dir=tmp_path)
        with pytest.raises(ValueError, match=f"{words.format(name)}.* or call Trainer.{stage} once for each"):
            getattr(trainer, stage)(trained, two)
    quiet_trainer(default_root_dir=tmp_path).test(trained, two[:1])


@pytest.mark.parametrize("recipe", ALONE, ids=lambda recipe: recipe.__name__)
def test_images_out_of_range_are_refused_in_a_call_and_in_batches(recipe, tmp_path):
    trained = build(recipe, **OWN.get(recipe, {}))
    image = torch.randint(0, 256, (8, 1, 16, 16)).float()
    for call in (trained, *([trained.classify] if hasattr(trained, "classify") else [])):
        with pytest.raises(ValueError, match=r"images are from 0 to 25\d: .* Divide by 255, or give uint8"):
            call(image)
        call(image / 255)
        call(image.byte())
    trained.lr_batch_size = None  # of Batches, a loader does not tell the size
    batches = [Batch(image[:4], torch.zeros(4, dtype=torch.int64), torch.arange(4))]
    with pytest.raises(ValueError, match="Divide by 255, or give uint8"):
        fit(trained, DataLoader(batches, batch_size=None), tmp_path, limit_val_batches=0)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_images_out_of_range_are_refused_in_whichever_batch_they_come(stage, tmp_path):
    image = torch.rand(8, 1, 16, 16)
    image[-1, 0, 3, 3] = 1.5
    trainer = quiet_trainer(max_epochs=1, default_root_dir=tmp_path, limit_val_batches=1.0 if stage != "fit" else 0)
    with pytest.raises(ValueError, match=r"images are from 0\S* to 1.5: floats must be in \[0, 1\]"):
        getattr(trainer, stage)(build(Supervised), pairs(image=image))


@pytest.mark.parametrize("wrong", [2, -2])
def test_a_label_that_is_no_class_is_refused_wherever_it_comes_in_a_loader(wrong, tmp_path):
    label = torch.tensor([0, 1, 0, 1, 1, 0, -1, wrong])
    words = rf"labels are from .*{wrong}.*: with num_classes 2, they must be from 0 to 1, or -1"
    with pytest.raises(ValueError, match=words):
        fit(build(Supervised), pairs(label=label), tmp_path, limit_val_batches=0)
    for stage in ("validate", "test"):
        with pytest.raises(ValueError, match=words):
            getattr(quiet_trainer(default_root_dir=tmp_path), stage)(build(Supervised), pairs(label=label))
    quiet_trainer(default_root_dir=tmp_path).predict(build(Supervised), pairs(label=label))


def test_a_datamodule_of_more_classes_than_the_recipe_is_refused_before_training(tmp_path):
    trainer = quiet_trainer(max_steps=1, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="labels are from 0 to 9: with num_classes 2"):
        trainer.fit(build(Supervised), Digits(size=16, batch_size=64))


class Endless(IterableDataset):
    """Images without end, and without length."""

    def __iter__(self):
        for index in count():
            yield torch.full((1, 16, 16), index % 251, dtype=torch.uint8), index % 2, index % 8


@pytest.mark.parametrize("recipe", ALONE, ids=lambda recipe: recipe.__name__)
def test_a_schedule_over_data_without_length_spans_max_steps_or_says_what_to_set(recipe, tmp_path):
    arguments = {**OWN.get(recipe, {}), "scheduler": lambda o: WarmupCosine(o, warmup_epochs=0.5)}
    loader, options = DataLoader(Endless(), batch_size=4), {"default_root_dir": tmp_path, "limit_val_batches": 0}
    trainer = quiet_trainer(max_steps=4, **options)
    trainer.fit(trained := build(recipe, **arguments), loader)
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert (trainer.global_step, schedule.total_steps, schedule.steps_per_epoch) == (4, 4, 4)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    quiet_trainer(max_steps=6, **options).fit(trained, loader, ckpt_path=tmp_path / "end.ckpt", weights_only=False)
    with pytest.raises(ValueError, match="no length.*set trainer.max_steps, or trainer.limit_train_batches"):
        quiet_trainer(max_epochs=2, **options).fit(build(recipe, **arguments), loader)


@pytest.mark.parametrize("recipe", ALONE, ids=lambda recipe: recipe.__name__)
def test_training_in_16_true_is_refused_by_name_and_testing_is_not(recipe, tmp_path):
    trained, loader = build(recipe, **OWN.get(recipe, {})), pairs()
    with pytest.raises(ValueError, match="precision is 16-true: .* Use 16-mixed or bf16-mixed"):
        fit(trained, loader, tmp_path, precision="16-true")
    quiet_trainer(precision="16-true", default_root_dir=tmp_path).test(trained, loader)


def test_the_sums_of_metrics_are_exact_in_bf16_true():
    """1,000 images one by one; in bfloat16, 256 + 1 is 256."""
    trained = recipes.TeacherStudent(ConvNet(in_channels=1), 2, None).to(torch.bfloat16)
    for right in [True, False] * 500:
        trained.test_agreement(torch.tensor([right]), torch.tensor([True]))
        trained.test_calibration_error(torch.tensor([[9.0, 0.0]]), torch.tensor([1 - int(right)]))
    assert trained.test_agreement.compute() == 0.5
    assert trained.test_calibration_error.compute().item() == pytest.approx(torch.tensor(9.0).sigmoid() - 0.5, rel=1e-4)


def test_training_in_bf16_true_says_what_is_rounded(tmp_path):
    with pytest.warns(UserWarning, match="bf16-true keeps the weights and the averages of the optimiser in bfloat16"):
        fit(build(Supervised), pairs(), tmp_path, precision="bf16-true", limit_val_batches=0)


def test_the_recipes_are_found():
    assert {recipe.__name__ for recipe in ALONE} >= {"SimCLR", "BYOL", "Supervised", "MeanTeacher"}


@pytest.mark.parametrize("recipe", ALONE, ids=lambda recipe: recipe.__name__)
def test_pairs_of_images_and_labels_train_validate_test_and_predict_or_say_what_to_give(recipe, tmp_path):
    built = build(recipe, **OWN.get(recipe, {}))
    trainer = quiet_trainer(max_steps=2, default_root_dir=tmp_path)
    if recipe.__name__ in NEED_MORE:
        alone = DataLoader(torch.zeros(8, 1, 16, 16), batch_size=4)
        for given in (pairs(), alone):
            with pytest.raises(ValueError, match=NEED_MORE[recipe.__name__]):
                trainer.fit(built, given, given)
        return
    trainer.fit(built, pairs(), pairs())
    trainer.validate(built, pairs(), verbose=False)
    trainer.test(built, pairs(), verbose=False)
    predicted = trainer.predict(built, pairs())
    assert torch.cat([batch["index"] for batch in predicted]).tolist() == list(range(8))


def test_indices_are_those_of_the_dataset_on_two_devices_too():
    image, label = torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    assert as_batch([image, label], first=1 + 2 * 2, step=2).index.tolist() == [
        5,
        7,
    ]  # DistributedSampler deals in turn
    assert as_batch((image, label, torch.tensor([9, 3])), 0).index.tolist() == [9, 3]
    assert as_batch(image, 0).label.tolist() == [-1, -1]
    assert isinstance(as_batch([image, label], 0), Batch)


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (lambda: pairs(image=torch.randn(8, 1, 16, 16)), r"floats must be in \[0, 1\]. Leave out Normalize"),
        (lambda: pairs(image=torch.zeros(8, 16, 16, dtype=torch.uint8)), r"images \[4, 16, 16\]: they must be \[B, C"),
        (lambda: pairs(label=torch.zeros(8, 2)), r"labels \[4, 2\] of torch.float32: they must be integers \[4\]"),
        (
            lambda: DataLoader([{"x": 1}]),
            "gives a dict of dict: .*Batch.*ImageFolder|gives a dict: .*Batch.*ImageFolder",
        ),
    ],
)
def test_a_loader_of_something_else_is_refused_in_words(loader, words, tmp_path):
    with pytest.raises((ValueError, TypeError), match=words):
        fit(build(Supervised), loader(), tmp_path, limit_val_batches=0)


@pytest.mark.parametrize("recipe", [SimCLR, BYOL])
@pytest.mark.parametrize("plain", [True, False])
def test_a_batch_of_one_image_is_refused_by_recipes_that_cannot_learn_from_it(recipe, plain, tmp_path):
    given = pairs(batch_size=1) if plain else Digits(size=16, batch_size=1)
    with pytest.raises(ValueError, match=f"batch_size is 1: {recipe.__name__} needs at least 2"):
        quiet_trainer(max_steps=1, default_root_dir=tmp_path, limit_val_batches=0).fit(build(recipe), given)


def test_a_batch_of_one_image_is_fine_for_a_recipe_without_batch_norm_of_features(tmp_path):
    assert fit(build(Supervised), pairs(batch_size=1), tmp_path, limit_val_batches=0).global_step == 2


def test_a_datamodule_after_a_plain_loader_is_used_as_ever(tmp_path):
    recipe = build(SimCLR)
    fit(recipe, pairs(), tmp_path, limit_val_batches=0)
    quiet_trainer(max_steps=1, default_root_dir=tmp_path, limit_val_batches=0).fit(
        recipe, Digits(size=16, batch_size=64)
    )
    assert "on_before_batch_transfer" not in vars(recipe)
