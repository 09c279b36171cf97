import hashlib
import itertools
import pickle

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from datamodules import Digits, ImageDataModule, ImageFiles, ImagesInMemory, Splits, TaskBatch, Tasks
from datamodules import TaskSequence as Sequence
from tests.helpers.processes import run
from tests.helpers.training import SaveAndDie, fit_until_killed, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NAMES = "abcdef"


class Letters(ImageDataModule):
    """24 images, two of each class and then two more, and 7 without a label; the first pixel says which image it is."""

    def __init__(self, names=NAMES, shape=(1, 2, 3), first=0, val=True, test=True):
        super().__init__()
        self.names, self.shape, self.first, self.val, self.test = names, shape, first, val, test

    @property
    def num_classes(self):
        return len(self.names)

    def load(self):
        def images(count, unlabelled, first):
            label = torch.cat([torch.arange(count) % len(self.names), torch.full((unlabelled,), -1)])
            pixels = torch.arange(self.shape[0] * self.shape[1] * self.shape[2]).view(self.shape)
            image = torch.arange(first, first + len(label)).view(-1, 1, 1, 1) + 40 * pixels
            return ImagesInMemory(image.to(torch.uint8), label)

        val = images(12, 0, self.first + 100) if self.val else None
        test = images(6, 1, self.first + 120) if self.test else None
        return Splits(tuple(self.names), images(24, 7, self.first), val, test)


def read(base=None, batch_size=4, **options):
    data = Sequence(base or Letters(), batch_size=batch_size, **options)
    data.setup()
    return data


def rows(dataset, *positions):
    return dataset.images(torch.tensor(positions or range(len(dataset))))


def ids(dataset):
    return rows(dataset)[:, 0, 0, 0].tolist()


def of_tasks(data, which="train"):
    """For each task, its images and labels."""
    dataset = getattr(data.splits, which)
    every = ids(dataset)
    return [
        [(every[place], int(dataset.label[place])) for place in data.positions(dataset, task).tolist()]
        for task in range(len(data.tasks))
    ]


# What the tasks are


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_every_class_has_a_label_of_its_own_where_tasks_are_told_apart(scenario):
    tasks = Tasks((2, 3, 1), scenario)
    assert len(tasks) == 3
    assert tasks.num_classes == 6
    assert [list(tasks.labels(task)) for task in range(3)] == [[0, 1], [2, 3, 4], [5]]
    assert tasks.head_sizes == (2, 3, 1)


def test_all_tasks_have_the_same_labels_in_the_scenario_domain():
    tasks = Tasks((3, 3), "domain")
    assert tasks.num_classes == 3
    assert [list(tasks.labels(task)) for task in range(2)] == [[0, 1, 2]] * 2
    assert tasks.head_sizes == (3,)


def test_tasks_from_a_configuration_equal_those_that_were_saved():
    assert Tasks([2, 2]) == Tasks((2, 2))
    assert hash(Tasks([2, 2])) == hash(Tasks((2, 2)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (((2, 3), "domain"), "tasks have 2, 3 classes: in the scenario domain"),
        (((), "class"), "at least one task"),
        (((2, 0), "class"), "at least one task, and each a class"),
        (((2, 2), "online"), "scenario is 'online': it must be one of task, class, domain"),
    ],
)
def test_tasks_that_cannot_be_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Tasks(*arguments)


# Which images and labels they have


def test_the_classes_are_cut_into_tasks_in_their_order():
    data = read(num_tasks=3)
    assert data.tasks == Tasks((2, 2, 2), "class")
    assert data.class_names == tuple("abcdef")
    assert of_tasks(data) == [
        [(0, 0), (1, 1), (6, 0), (7, 1), (12, 0), (13, 1), (18, 0), (19, 1)],
        [(2, 2), (3, 3), (8, 2), (9, 3), (14, 2), (15, 3), (20, 2), (21, 3)],
        [(4, 4), (5, 5), (10, 4), (11, 5), (16, 4), (17, 5), (22, 4), (23, 5)],
    ]
    assert of_tasks(data, "val")[1] == [(102, 2), (103, 3), (108, 2), (109, 3)]
    assert of_tasks(data, "test") == [[(120, 0), (121, 1)], [(122, 2), (123, 3)], [(124, 4), (125, 5)]]
    assert data.splits.train.task.tolist() == [0] * 8 + [1] * 8 + [2] * 8


def test_labels_of_the_scenario_domain_are_places_in_the_task():
    data = read(num_tasks=2, scenario="domain")
    assert data.num_classes == 3
    assert data.class_names == ("a or d", "b or e", "c or f")
    assert of_tasks(data, "test") == [[(120, 0), (121, 1), (122, 2)], [(123, 0), (124, 1), (125, 2)]]


def test_groups_of_named_classes_are_tasks_and_other_classes_are_left_out():
    data = Sequence(Letters(), class_groups=[["e", "b"], ["a", "f", "c"]])
    assert data.tasks == Tasks((2, 3), "class")
    data.setup()
    assert data.class_names == tuple("ebafc")
    assert of_tasks(data, "test") == [[(121, 1), (124, 0)], [(120, 2), (122, 4), (125, 3)]]


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_each_labelled_image_is_in_one_task_and_none_is_lost(scenario):
    data = read(num_tasks=3, order_seed=5, scenario=scenario)
    for which, first, count in (("train", 0, 24), ("val", 100, 12), ("test", 120, 6)):
        assert sorted(ids(getattr(data.splits, which))) == list(range(first, first + count))


def test_the_order_of_the_classes_follows_the_seed_and_the_labels_follow_the_order():
    data = read(num_tasks=2, order_seed=3)
    again, other, plain = read(num_tasks=2, order_seed=3), read(num_tasks=2, order_seed=4), read(num_tasks=2)
    assert data.class_names == again.class_names
    assert len({data.class_names, other.class_names, plain.class_names}) == 3
    assert sorted(data.class_names) == list(NAMES)
    for which, first in (("train", 0), ("val", 100), ("test", 120)):
        dataset = getattr(data.splits, which)
        named = [data.class_names[label] for label in dataset.label]
        assert named == [NAMES[(number - first) % 6] for number in ids(dataset)]
        assert all(label in data.tasks.labels(task) for label, task in zip(dataset.label, dataset.task, strict=True))


def test_the_order_of_1993_is_that_of_published_code_for_cifar_100():
    data = read(Letters([f"class {i}" for i in range(100)], first=0), num_tasks=10, order_seed=1993)
    published = [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]  # FACIL, dataset_config.py: the first task
    assert [name.split()[1] for name in data.class_names[:10]] == [str(i) for i in published]


def test_tasks_are_known_before_the_images_are_read():
    assert Sequence(Digits(), num_tasks=5).num_classes == 10
    assert Sequence(Digits(), by="rotation", num_tasks=3, scenario="domain").num_classes == 10
    assert Sequence(Digits(), by="permutation", num_tasks=3).tasks == Tasks((10, 10, 10), "class")
    assert Sequence(Digits(), then=[Letters()], by="datasets", scenario="task").tasks == Tasks((10, 6), "task")
    assert Sequence(Digits()).tasks == Tasks((2,) * 5, "class")


@pytest.mark.parametrize("by", ["permutation", "rotation"])
def test_every_changed_task_has_all_images_and_classes(by):
    data = read(by=by, num_tasks=3)
    labels = [list(range(6)), list(range(6, 12)), list(range(12, 18))]
    train = data.splits.train
    assert len(train) == 3 * 24
    for task in range(3):
        assert train.label[train.task == task].tolist() == labels[task] * 4
    assert data.class_names[:2] == ("a (task 1)", "b (task 1)")
    assert len(set(data.class_names)) == 18
    same = read(by=by, num_tasks=3, scenario="domain")
    assert same.class_names == tuple(NAMES)
    assert same.splits.train.label.tolist() == labels[0] * 12


def test_a_permutation_moves_every_pixel_of_all_images_and_channels_alike():
    def images(**options):
        data = read(Letters(shape=(3, 4, 5)), by="permutation", num_tasks=3, **options)
        return rows(data.splits.train).flatten(2).view(3, 24, 3, 20)  # [tasks, images, channels, pixels]

    Letters_ = Letters(shape=(3, 4, 5))
    Letters_.setup()
    plain = rows(Letters_.splits.train)[:24].flatten(2)
    tasks = images()
    assert torch.equal(tasks[0], plain)
    orders = []
    for task in (1, 2):
        seen = plain[0, 0].tolist()
        order = [seen.index(value) for value in tasks[task, 0, 0].tolist()]  # the pixels of an image are all different
        assert sorted(order) == list(range(20))
        assert order != list(range(20))
        assert torch.equal(tasks[task], plain[:, :, order])
        orders.append(order)
    assert orders[0] != orders[1]
    assert torch.equal(images(), tasks)
    assert torch.equal(images(order_seed=0), tasks)
    assert not torch.equal(images(order_seed=1), tasks)


@pytest.mark.parametrize(("options", "angles"), [({}, [0, 60, 120]), ({"angle": -25.5}, [0, -25.5, -51])])
def test_a_rotation_is_torchvisions_of_every_image(options, angles):
    base = Digits(size=16)
    data = read(base, by="rotation", num_tasks=3, scenario="domain", **options)
    test, plain = data.splits.test, rows(base.splits.test)
    for task, angle in enumerate(angles):
        turned = test.images(data.positions(test, task)[:20])
        expected = [rotate(image[None], angle, InterpolationMode.BILINEAR) for image in plain[:20]]
        assert turned.dtype == torch.uint8
        assert torch.equal(turned, torch.cat(expected))


@pytest.mark.parametrize("by", ["classes", "permutation", "rotation"])
def test_a_batch_of_several_tasks_holds_what_each_image_is_alone(by):
    train = read(Digits(size=8), by=by, num_tasks=5).splits.train
    index = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:40].tolist()
    batch = train.__getitems__(index)
    assert isinstance(batch, TaskBatch)
    assert len(set(batch.task.tolist())) == 5
    assert batch.index.tolist() == index
    alone = [train.__getitems__([i]) for i in index]
    for field in ("image", "label", "index", "task"):
        assert torch.equal(getattr(batch, field), torch.cat([getattr(one, field) for one in alone]))
    assert torch.equal(train.images(torch.tensor(index)), batch.image)
    assert len(train.images(torch.tensor([], dtype=torch.int64))) == 0


def test_a_task_of_another_dataset_has_its_images_and_names_that_are_not_taken():
    data = read(Letters("ab"), then=[Letters("bcd", first=40), Letters("e", first=80)], by="datasets")
    assert data.tasks == Tasks((2, 3, 1), "class")
    assert data.class_names == ("a", "b (task 1)", "b (task 2)", "c", "d", "e")
    assert of_tasks(data, "test")[1] == [(160 + i, 2 + i % 3) for i in range(6)]
    assert [number for number, _ in of_tasks(data)[2]] == list(range(80, 104))
    assert {label for _, label in of_tasks(data)[2]} == {5}


def test_datasets_of_the_scenario_domain_share_their_labels():
    data = read(Letters("abc"), then=[Letters("xbz", first=40)], by="datasets", scenario="domain")
    assert data.class_names == ("a or x", "b", "c or z")
    assert data.splits.train.label.tolist() == [0, 1, 2] * 16


def test_a_split_that_one_dataset_has_not_is_left_out_and_said_to_be():
    with pytest.warns(UserWarning, match="Letters has no val images"):
        data = read(Letters(test=False), then=[Letters(val=False, test=False)], by="datasets")
    assert data.splits.val is None
    assert data.splits.test is None
    assert data.val_dataloader() == []


def test_images_of_another_shape_are_refused_with_what_to_set():
    with pytest.raises(ValueError, match="Digits has images of 1×16×16 and Letters of 1×2×3 .* set size of Digits"):
        read(Letters(), then=[Digits()], by="datasets")


# Mean and standard deviation


@pytest.mark.parametrize("by", ["classes", "permutation", "rotation", "datasets"])
def test_mean_and_std_are_those_of_the_first_tasks_training_images(by):
    base = Digits(size=8)
    then = [Digits(size=8, mode="pad")] if by == "datasets" else ()
    data = read(base, by=by, then=then, num_tasks=None if then else 5)
    train = base.splits.train
    first = train.label < 2 if by == "classes" else train.label < 10
    pixels = rows(train)[first].double() / 255
    assert data.mean == pytest.approx((pixels.mean().item(),), rel=1e-12)
    assert data.std == pytest.approx((pixels.std(correction=0).item(),), rel=1e-12)
    if by == "classes":
        assert data.mean != base.mean


def test_mean_and_std_of_files_take_few_of_the_first_task(tmp_path):
    class Files(ImageFiles):
        def images(self, index):
            decoded.extend(index.tolist())
            return torch.zeros(len(index), 1, 2, 2, dtype=torch.uint8)

    class Many(ImageDataModule):
        def load(self):
            return Splits(("a", "b"), Files([tmp_path / "x"] * 10_000, torch.arange(10_000) % 2, 2, 1))

    decoded = []
    assert read(Many(), num_tasks=2).mean == (0,)
    assert decoded == [0] + [2 * (i * 5000 // 2048) for i in range(2048)]  # the first tells the shape


# What is computed in advance is kept under a digest


def test_the_digest_tells_tasks_and_changes_apart():
    options = [
        {"num_tasks": 2},
        {"num_tasks": 5},
        {"num_tasks": 5, "order_seed": 1},
        {"by": "permutation", "num_tasks": 3},
        {"by": "permutation", "num_tasks": 3, "order_seed": 1},
        {"by": "rotation", "num_tasks": 3},
        {"by": "rotation", "num_tasks": 3, "angle": 61.0},
    ]
    digests = [read(Digits(size=8), **each).splits.train.digest() for each in options]
    assert len(set(digests)) == len(options)
    assert digests == [read(Digits(size=8), **each).splits.train.digest() for each in options]


def test_the_dataset_can_be_sent_to_workers():
    for by in ("classes", "permutation", "rotation"):
        train = read(by=by, num_tasks=2).splits.train
        assert torch.equal(rows(pickle.loads(pickle.dumps(train))), rows(train))


# The epochs


def test_epochs_belong_to_tasks_one_after_the_other():
    data = Sequence(Letters(), num_tasks=3, epochs_per_task=[1, 3, 2])
    assert data.epochs.total == 6
    assert [data.epochs.task_of(epoch) for epoch in range(8)] == [0, 1, 1, 1, 2, 2, 2, 2]
    assert [data.epochs.epoch_in_task(epoch) for epoch in range(8)] == [0, 0, 1, 2, 0, 1, 2, 3]
    assert [epoch for epoch in range(8) if data.epochs.is_last_of_task(epoch)] == [0, 3, 5]
    assert Sequence(Letters(), num_tasks=3, epochs_per_task=4).epochs_per_task == (4, 4, 4)


class Recorder(LightningModule):
    def __init__(self, asks_early=True, cumulative=False):
        super().__init__()
        self.cumulative = cumulative
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.asks_early = asks_early
        self.seen, self.loaders = [], []

    def setup(self, stage):
        if self.cumulative:
            self.trainer.datamodule.deal_earlier_tasks()

    def training_step(self, batch, batch_idx):
        assert isinstance(batch, TaskBatch)
        self.seen.append((self.current_epoch, batch_idx, tuple(batch.index.tolist()), tuple(batch.task.tolist())))
        self.loaders.append(self.trainer.train_dataloader)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.loaders.append(self.trainer.val_dataloaders)

    def configure_optimizers(self):
        if self.asks_early:  # as recipes do: the loader is then made before the epoch is restored
            assert self.trainer.estimated_stepping_batches > 0
        self.batches_at_first = self.trainer.num_training_batches
        return torch.optim.SGD(self.parameters(), 0.1)


class Uneven(ImageDataModule):
    """Tasks of 14, 9 and 22 images: 3, 2 and 5 batches of 4."""

    num_classes = 3

    def load(self):
        label = torch.arange(3).repeat_interleave(torch.tensor([14, 9, 22]))
        image = torch.arange(45, dtype=torch.uint8).view(45, 1, 1, 1)
        return Splits(("a", "b", "c"), ImagesInMemory(image, label), ImagesInMemory(image[::5], label[::5]))


EPOCHS = (1, 3, 2)
LENGTHS = (3, 2, 2, 2, 5, 5)  # of the epochs, in batches
STARTS = (0, 14, 23)  # of the tasks, in images


def fit(callbacks=(), checkpoint=None, asks_early=True, cumulative=False, devices=1, num_workers=0, **trainer):
    recorder = Recorder(asks_early, cumulative)
    data = Sequence(Uneven(), num_tasks=3, epochs_per_task=EPOCHS, batch_size=4, num_workers=num_workers)
    trainer = quiet_trainer(devices=devices, callbacks=list(callbacks), **trainer)
    fit_until_killed(trainer, recorder, data, ckpt_path=checkpoint)
    return recorder


def by_epoch(seen):
    return {epoch: list(steps) for epoch, steps in itertools.groupby(seen, lambda step: step[0])}


@pytest.mark.parametrize("limit", [{}, {"max_epochs": -1}, {"max_epochs": 1000}])
def test_a_run_lasts_as_long_as_the_tasks_and_each_epoch_deals_those_of_its_task(limit):
    epochs = by_epoch(fit(**limit).seen)
    assert [len(steps) for steps in epochs.values()] == list(LENGTHS)
    for epoch, task in enumerate([0, 1, 1, 1, 2, 2]):
        dealt = [i for *_, index, _ in epochs[epoch] for i in index]
        assert len(set(dealt)) == len(dealt) == 4 * LENGTHS[epoch]
        assert {number for *_, tasks in epochs[epoch] for number in tasks} == {task}
        end = STARTS[task] + (14, 9, 22)[task]
        assert STARTS[task] <= min(dealt) <= max(dealt) < end
        assert [step[1] for step in epochs[epoch]] == list(range(LENGTHS[epoch]))
    assert epochs[1] != epochs[2]


def test_epochs_of_all_tasks_so_far_deal_them_all():
    epochs = by_epoch(fit(cumulative=True).seen)
    assert [len(steps) for steps in epochs.values()] == [3, 5, 5, 5, 11, 11]
    for epoch, end in enumerate([14, 23, 23, 23, 45, 45]):
        dealt = {i for *_, index, _ in epochs[epoch] for i in index}
        assert dealt <= set(range(end))
        assert len(dealt) == end // 4 * 4
    assert {number for *_, tasks in epochs[5] for number in tasks} == {0, 1, 2}


def test_a_smaller_number_of_epochs_or_steps_ends_the_run_early():
    whole = fit().seen
    assert fit(max_epochs=2).seen == whole[:5]
    assert fit(max_steps=8).seen == whole[:8]
    assert fit(fast_dev_run=True).seen == whole[:1]


def test_the_loaders_are_made_anew_for_each_task_alone_so_that_workers_live_on():
    recorder = fit()
    assert len({id(loader) for loader in recorder.loaders}) == 3 + 1  # of training, and of validation


def test_workers_load_what_this_process_loads():
    assert fit(num_workers=1, limit_val_batches=0).seen == fit().seen


KILLED = [
    ("batch start", 4),  # in the middle of the first epoch of a task, of a middle one, of the last
    ("batch end", 2),
    ("batch end", 6),
    ("batch end", 8),
    ("batch end", 16),
    ("batch start", 9),  # before the first batch of a task
    ("batch end", 3),  # after the last batch of a task; the next has fewer
    ("batch end", 9),  # the next has more
    ("batch end", 5),  # after the last batch of an epoch, and the task goes on
    ("epoch end", 3),
    ("epoch end", 7),
    ("epoch end", 9),
    ("validation end", 9),
    ("validation end", 14),
]


@pytest.mark.parametrize("asks_early", [True, False])
@pytest.mark.parametrize(("hook", "step"), KILLED)
def test_a_run_that_was_killed_goes_on_with_exactly_what_is_left(hook, step, asks_early, tmp_path):
    whole = fit(asks_early=asks_early).seen
    path = tmp_path / "checkpoint.ckpt"
    before = fit([SaveAndDie(path, hook, step)], asks_early=asks_early).seen
    after = fit(checkpoint=path, asks_early=asks_early).seen
    assert len(before) == step
    assert before + after == whole


def test_a_recipe_that_asks_before_the_epoch_is_restored_gets_the_length_of_its_task(tmp_path):
    path = tmp_path / "checkpoint.ckpt"
    for step, length in ((2, 3), (6, 2), (12, 5)):
        fit([SaveAndDie(path, "batch end", step)])
        assert fit(checkpoint=path).batches_at_first == length


def test_a_run_of_all_tasks_so_far_goes_on_with_exactly_what_is_left(tmp_path):
    whole, path = fit(cumulative=True).seen, tmp_path / "checkpoint.ckpt"
    for step in (3, 6, 18, 20, 31):
        before = fit([SaveAndDie(path, "batch end", step)], cumulative=True).seen
        assert before + fit(checkpoint=path, cumulative=True).seen == whole


def test_a_run_with_a_number_of_steps_goes_on_after_a_task(tmp_path):
    whole, path = fit(max_steps=17).seen, tmp_path / "checkpoint.ckpt"
    before = fit([SaveAndDie(path, "epoch end", 9)], max_steps=17).seen
    assert before + fit(checkpoint=path, max_steps=17).seen == whole


def test_a_task_deals_what_is_handed_out_in_place_of_its_images():
    data = read(Uneven(), num_tasks=3)
    before = data.train_dataloader()
    assert data.train_dataloader() is before
    data.hand_out(ImagesInMemory(2 * torch.arange(45.0).view(45, 1), data.splits.train.label), None)
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch.image, 2.0 * batch.index[:, None])
    assert data.val_dataloader() == []


@pytest.mark.parametrize("end", ["finishes", "fails"])
def test_a_run_gives_data_and_trainer_back_as_it_was_lent_them(end):
    class Failing(Recorder):
        def training_step(self, batch, batch_idx):
            if end == "fails" and self.current_epoch == 1:
                raise RuntimeError("killed")
            return super().training_step(batch, batch_idx)

    data = Sequence(Uneven(), num_tasks=3, epochs_per_task=EPOCHS, batch_size=4)
    trainer = quiet_trainer(max_epochs=50)
    fit_until_killed(trainer, Failing(cumulative=True), data)
    assert data.cumulative is False
    assert data.batches_per_epoch == [3, 2, 5]
    assert (trainer.max_epochs, trainer.reload_dataloaders_every_n_epochs) == (50, 0)
    recorder = Recorder()
    quiet_trainer().fit(recorder, data)
    assert recorder.seen == fit().seen


def test_a_test_of_a_checkpoint_does_not_move_the_next_run(tmp_path):
    path = tmp_path / "last.ckpt"
    fit([SaveAndDie(path, "batch end", 14)])
    data = Sequence(Uneven(), num_tasks=3, epochs_per_task=EPOCHS, batch_size=4)
    quiet_trainer().validate(Recorder(), data, ckpt_path=path, verbose=False)
    recorder = Recorder()
    quiet_trainer().fit(recorder, data)
    assert recorder.seen == fit().seen


def test_one_datamodule_serves_two_trainers():
    data = Sequence(Uneven(), num_tasks=3, epochs_per_task=EPOCHS, batch_size=4)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(accelerator="cpu", max_epochs=1, **quiet).fit(Recorder(), data)
    recorder = Recorder()
    Trainer(accelerator="cpu", **quiet).fit(recorder, data)
    assert recorder.seen == fit().seen


# Two devices


def on_this_device(devices):
    """What it trained on, and a digest of its permuted images."""
    permuted = read(by="permutation", num_tasks=3).splits.train
    return fit(devices=devices).seen, hashlib.sha256(rows(permuted).numpy().tobytes()).hexdigest()


def test_two_devices_together_get_the_batches_of_one_and_the_same_permutations(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    one, expected = on_this_device(1)
    (first, digest), (second, other) = run(on_this_device, 2, processes=2)
    joined = [
        (epoch, number, index + others, tasks + more)
        for (epoch, number, index, tasks), (*_, others, more) in zip(first, second, strict=True)
    ]
    assert {len(index) for *_, index, _ in first} == {2}
    assert joined == one
    assert digest == other == expected


# Mistakes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "tasks"}, "by is 'tasks': it must be one of classes, permutation, rotation, datasets"),
        (
            {"num_tasks": 4},
            "it must divide the number of classes, 6. Choose one of 1, 2, 3, 6, or list the classes",
        ),
        ({"num_tasks": 0}, "num_tasks is 0"),
        ({"num_tasks": 2, "scenario": "online"}, "scenario is 'online'"),
        ({"class_groups": [["a"], ["z"]]}, "no class 'z'; it has a, b, c, d, e, f"),
        ({"class_groups": [["a"], ["b", "a"]]}, "names 'a' twice"),
        ({"class_groups": []}, "at least one task"),
        ({"class_groups": [["a"], []]}, "each at least one class"),
        ({"class_groups": [["a"]], "num_tasks": 1}, "leave num_tasks and order_seed out"),
        ({"class_groups": [["a"], ["b", "c"]], "scenario": "domain"}, "tasks have 1, 2 classes"),
        ({"then": [Letters()]}, "then is for tasks by datasets, and by is classes: leave then out"),
        ({"by": "datasets"}, "then is empty"),
        ({"by": "rotation", "order_seed": 1}, "order_seed is for tasks by classes or permutation, and by is rotation"),
        ({"angle": 10.0}, "angle is for tasks by rotation"),
        ({"by": "rotation", "angle": float("nan")}, "angle is nan"),
        ({"order_seed": -1}, "order_seed is -1"),
        ({"num_tasks": 3, "epochs_per_task": [1, 2]}, "epochs_per_task has 2 numbers, and there are 3 tasks"),
        ({"num_tasks": 2, "epochs_per_task": [1, 0]}, "each task takes at least 1"),
        ({"num_tasks": 2, "epochs_per_task": 0}, "epochs_per_task is 0"),
    ],
)
def test_a_mistake_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        read(**options)


def test_a_task_with_too_few_images_is_named_before_training():
    data = Sequence(Uneven(), num_tasks=3, batch_size=10)
    data.setup()
    with pytest.raises(ValueError, match="batch_size is 10, but task 2 has only 9 training images"):
        data.train_dataloader()
    data.deal_earlier_tasks()
    assert len(data.train_dataloader()) == 1


def test_images_without_classes_make_no_tasks():
    class Pictures(ImageDataModule):
        num_classes = 0

    with pytest.raises(ValueError, match="Pictures has no labelled images"):
        assert Sequence(Pictures()).tasks
