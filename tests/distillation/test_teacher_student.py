import copy
import math
import shutil

import pytest
import torch
from lightning.pytorch import seed_everything
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision import models

from datamodules import Batch, Digits, ImageFolder
from losses import AttentionTransfer, FeatureLoss, Hint, SimilarityPreserving
from recipes import MeanTeacher, SimCLR, Supervised, TeacherStudent
from recipes.augment import Compose, RandomAffine
from recipes.base.checkpoint import load
from recipes.cli import main
from recipes.distillation import LayerLoss, Teacher, cached_logits, teacher_from
from recipes.distillation.teacher import digest, unpacked
from recipes.evaluation.features import forward
from recipes.evaluation.runs import read_metrics
from recipes.nn import MLP, ConvNet, CrossDeviceBatchNorm
from tests.helpers.pictures import write_pictures
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def trained_network(seed=1, dropout=True, classes=10):
    """A network with batch norm and dropout whose running statistics are not those it began with."""
    seed_everything(seed, verbose=False)
    recipe = Supervised(ConvNet((4, 8)), classes, optimizer=sgd, scheduler=None)
    if dropout:
        recipe.encoder.network.append(nn.Dropout(0.5))
    for module in recipe.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
    recipe.normalize.set((0.3,), (0.4,))
    return recipe


def teacher(seed=1, **options):
    return Teacher([trained_network(seed, **options)], ["python"])


def student(encoder=None, **arguments):
    seed_everything(0, verbose=False)
    encoder = encoder or MLP(8, hidden=(8,), batch_norm=False)
    return TeacherStudent(
        encoder, 10, **{"teacher": teacher(), "optimizer": sgd, "scheduler": None, "lr_batch_size": None, **arguments}
    )


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def fit(recipe, epochs=2, callbacks=(), **options):
    trainer = quiet_trainer(max_epochs=epochs, callbacks=list(callbacks), **{"limit_train_batches": 3, **options})
    trainer.fit(recipe, Digits(size=8, batch_size=64))
    return trainer


def recipe_and_batch(**arguments):
    """A student outside of training, in float64, and a batch."""
    recipe = student(**arguments).double()
    recipe.teacher.double()
    recipe.trainer = quiet_trainer(max_epochs=2)
    recipe.log = lambda *_, **__: None
    data = Digits(size=8, batch_size=32)
    data.setup()
    return recipe, next(iter(data.train_dataloader()))


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# The teacher


def test_teacher_is_bit_identical_after_training_validation_and_train(tmp_path):
    recipe = student()
    before = state(recipe.teacher)
    trainer = fit(recipe, num_sanity_val_steps=2)
    recipe.train()
    recipe.teacher.train()
    trainer.test(recipe, Digits(size=8), verbose=False)
    after = recipe.teacher.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module.training for module in recipe.teacher.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in recipe.teacher.parameters())


def test_student_learns_and_the_teacher_is_no_part_of_it(tmp_path):
    recipe = student()
    before = state(recipe)
    trainer = fit(recipe)
    theirs = {id(parameter) for parameter in recipe.teacher.parameters()}
    ours = [id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert not theirs & {*ours, *(id(parameter) for parameter in recipe.parameters())}
    assert not any("teacher" in name and "accuracy" not in name for name in recipe.state_dict())
    assert not torch.equal(before["head.weight"], recipe.state_dict()["head.weight"])


def test_the_teacher_normalises_the_pixels_of_the_student_by_its_own_statistics(float64):
    recipe, batch = recipe_and_batch(views=RandomAffine(translate=0.2))
    seen = []
    recipe.teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    original = recipe.forward
    recipe.forward = lambda image: seen.append(image) or original(image)
    recipe.training_step(batch, 3)
    assert seen[0] is seen[1]
    assert not torch.equal(recipe.teacher.members[0].normalize.mean, recipe.normalize.mean)


def test_several_teachers_are_the_geometric_mean_of_their_probabilities():
    one, other = trained_network(1), trained_network(2)
    both = Teacher([one, other], ["a", "b"])
    image = torch.rand(5, 1, 8, 8)
    one, other = one.eval(), other.eval()
    for temperature in (1.0, 4.0):
        with torch.no_grad():
            p, q = ((member.classify(image) / temperature).softmax(1) for member in (one, other))
        mean = (p * q).sqrt()
        torch.testing.assert_close((both(image) / temperature).softmax(1), mean / mean.sum(1, keepdim=True))


def test_teachers_with_other_classes_are_refused():
    with pytest.raises(ValueError, match="a 10, b 4"):
        Teacher([trained_network(), trained_network(classes=4)], ["a", "b"])
    recipe = student(teacher=teacher(classes=4))
    with pytest.raises(ValueError, match="has 4 classes, and the data 10"):
        fit(recipe)


def test_teacher_with_the_same_classes_in_another_order_is_refused():
    swapped = teacher()
    swapped.class_names = tuple("1023456789")
    with pytest.raises(ValueError, match="'0' here and '1' there"):
        fit(student(teacher=swapped))


def test_teacher_that_cannot_take_the_images_is_refused():
    seed_everything(0, verbose=False)
    larger = Teacher([Supervised(MLP(16, hidden=(8,)), 10)], ["larger"])
    with pytest.raises(ValueError, match="teacher larger cannot take these images of 1 × 8 × 8"):
        fit(student(teacher=larger))
    one_of_two = Teacher([trained_network(), larger.members[0]], ["fits", "larger"])
    with pytest.raises(ValueError, match="teacher fits, larger cannot take these images of 1 × 8 × 8"):
        fit(student(teacher=one_of_two))


def test_mean_teacher_run_teaches_with_the_averaged_network():
    seed_everything(0, verbose=False)
    recipe = MeanTeacher(ConvNet((4, 8)), 10)
    with torch.no_grad():
        for parameter in recipe.teacher.parameters():
            parameter.add_(0.1)
    image = torch.rand(3, 1, 8, 8)
    expected = recipe.eval().teacher(recipe.normalize(image))
    torch.testing.assert_close(Teacher([recipe], ["run"])(image), expected)


def test_a_run_without_classes_teaches_features_alone(tmp_path):
    seed_everything(0, verbose=False)
    simclr = Teacher([SimCLR(ConvNet((4, 8)))], ["simclr"])
    with pytest.raises(ValueError, match="has no classification head: set soft_weight to 0"):
        fit(student(teacher=simclr))
    layers = [LayerLoss(SimilarityPreserving(), 1.0)]
    fit(student(teacher=simclr, soft_weight=0.0, layer_losses=layers))


@pytest.mark.parametrize("names", ["nowhere", ["nowhere", "torchvision:resnet18"]])
def test_missing_teacher_gets_a_message_with_the_command_that_makes_one(names):
    with pytest.raises(FileNotFoundError, match="no teacher at nowhere: train one, such as with a config teacher-"):
        teacher_from(names)


def test_torchvision_network_teaches_with_the_weights_of_a_file(tmp_path):
    torch.manual_seed(0)
    whole = models.resnet18().eval()
    torch.save(whole.state_dict(), tmp_path / "resnet18.pth")
    found = teacher_from(f"torchvision:resnet18:{tmp_path / 'resnet18.pth'}")
    assert found.num_classes == 1000
    image = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        torch.testing.assert_close(found(image), whole((image - mean) / std))
    again = unpacked(found.packed())
    assert again.digest == found.digest
    torch.testing.assert_close(again(image), found(image))


@pytest.mark.slow
def test_loading_a_teacher_leaves_random_numbers_alone(runs_of_digits):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    teacher_from(str(runs_of_digits))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("64-true", torch.float64)],
)
def test_teacher_works_in_the_precision_of_the_trainer_and_keeps_its_weights(precision, dtype):
    recipe = student()
    before = recipe.teacher.digest
    seen = set()
    convolution = recipe.teacher.members[0].encoder.network[0]
    convolution.register_forward_hook(lambda module, args, out: seen.add(out.dtype) if len(out) > 1 else None)
    fit(recipe, epochs=1, precision=precision)
    assert seen == {dtype}
    assert digest(recipe.teacher.float()) == before


# The loss


def test_loss_is_the_weighted_sum_of_hintons_section_2(float64):
    recipe, batch = recipe_and_batch(temperature=3.0, soft_weight=0.7, views=Compose([]))
    batch = batch._replace(label=torch.where(torch.arange(32) % 4 == 0, -1, batch.label))
    image = batch.image.double() / 255
    student_logits = recipe.classify(image).tolist()
    teacher_logits = recipe.teacher(image).tolist()

    def softmax(row, temperature):
        powers = [math.exp(x / temperature) for x in row]
        return [x / sum(powers) for x in powers]

    soft = hard = labelled = 0
    for s, t, label in zip(student_logits, teacher_logits, batch.label.tolist()):
        soft -= sum(p * math.log(q) for p, q in zip(softmax(t, 3.0), softmax(s, 3.0))) / 32
        if label >= 0:
            hard, labelled = hard - math.log(softmax(s, 1.0)[label]), labelled + 1
    expected = 3.0**2 * 0.7 * soft + 0.3 * hard / labelled
    assert recipe.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-10)
    recipe.soft_target.scale_t2 = False
    assert recipe.training_step(batch, 0).item() == pytest.approx(0.7 * soft + 0.3 * hard / labelled, rel=1e-10)


def test_student_equal_to_its_teacher_gets_no_gradient_from_it(float64):
    network = trained_network(dropout=False).double()
    same = copy.deepcopy(network)
    recipe, batch = recipe_and_batch(teacher=Teacher([network], ["self"]), soft_weight=1.0, views=Compose([]))
    recipe.encoder, recipe.head, recipe.normalize = same.encoder, same.head, same.normalize
    recipe.eval()
    recipe.training_step(batch, 0).backward()
    assert max(parameter.grad.abs().max() for parameter in recipe.parameters()) < 1e-12


@pytest.mark.parametrize(("scale_t2", "at_most"), [(True, 2.0), (False, None)])
def test_size_of_the_gradient_at_temperature_1_and_20_differs_by_less_than_2(scale_t2, at_most, float64):
    def norm(temperature):
        recipe, batch = recipe_and_batch(temperature=temperature, soft_weight=1.0, scale_t2=scale_t2, views=Compose([]))
        recipe.training_step(batch, 0).backward()
        return torch.stack([p.grad.norm() for p in recipe.parameters()]).norm().item()

    ratio = norm(1.0) / norm(20.0)
    assert 1 / at_most < ratio < at_most if at_most else ratio > 100


def test_temperature_moves_in_equal_steps_to_its_end():
    seen = []

    class Watch(TeacherStudent):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            seen.append(self.soft_target.temperature)
            return loss

    seed_everything(0, verbose=False)
    encoder = MLP(8, hidden=(8,))
    recipe = Watch(
        encoder, 10, teacher=teacher(), temperature=8.0, final_temperature=2.0, optimizer=sgd, scheduler=None
    )
    fit(recipe, epochs=2)
    assert seen == pytest.approx([8, 7, 6, 5, 4, 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"soft_weight": 1.5}, "soft_weight is 1.5: it must be between 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"final_temperature": -1.0}, "temperature is -1.0"),
        ({"teacher_logits": "saved"}, "'online' or 'cached'"),
        ({"hint_epochs": 2}, "needs layer_losses"),
        ({"layer_losses": [LayerLoss(Hint(), 0.0)]}, "weight of Hint is 0.0"),
        ({"layer_losses": [LayerLoss(Hint())], "teacher_logits": "cached"}, "Set teacher_logits to online"),
        ({"layer_losses": [LayerLoss(Hint(), student_layer="netwrk.2")]}, "did you mean 'network.2'"),
        ({"layer_losses": [LayerLoss(Hint(), student_layer="stage:9")]}, r"stage:0 \("),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        student(**arguments)


# Losses between layers


class Difference(FeatureLoss):
    """The mean square of the difference, through a linear layer; notes what it is given."""

    needs = ("label", "index", "key")

    def build(self, student, teacher, images):
        self.shapes = tuple(student), tuple(teacher), images
        self.project = nn.Linear(math.prod(student), math.prod(teacher), bias=False)
        self.moved = 0

    def forward(self, student, teacher, label, index, key):
        self.given = label, index, key
        return (self.project(student.flatten(1)) - teacher.flatten(1)).square().mean()

    def after_backward(self):
        self.moved += 1


class Of(Difference):
    needs = ("index",)
    compares_images = True

    def forward(self, student, teacher, index):
        self.images = len(index)
        return super().forward(student, teacher, None, index, None)


def test_losses_between_layers_see_what_the_named_layers_give_and_are_trained():
    loss = Difference()
    recipe = student(ConvNet((4, 8)), layer_losses=[LayerLoss(loss, 2.0, "stage:0", "network.3")])
    expected = recipe.teacher.encoder.get_submodule("network.3")
    shapes = []
    expected.register_forward_hook(lambda module, args, output: shapes.append(output.shape[1:]))
    trainer = fit(recipe)
    assert loss.shapes[1] == tuple(shapes[0])
    assert loss.shapes[2] == len(trainer.datamodule.splits.train)
    assert loss.moved == 6
    assert any(id(loss.project.weight) == id(p) for g in trainer.optimizers[0].param_groups for p in g["params"])
    assert not any(module._forward_hooks for module in recipe.encoder.modules())


def test_losses_between_layers_are_not_needed_to_load_the_student(tmp_path, runs_of_digits):
    arguments = ["--model.layer_losses", '[{"loss": {"class_path": "losses.Hint"}, "student_layer": "feature"}]']
    run_of = command(tmp_path, runs_of_digits, *arguments, "--model.teacher_logits", "online")
    recipe = load(run_of)
    assert not recipe.has_teacher
    assert recipe.classify(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.slow
def test_hints_come_first_and_leave_the_layers_above_alone(tmp_path):
    class Watch(TeacherStudent):
        def on_train_batch_end(self, *_):
            self.seen.append({name: value.detach().clone() for name, value in self.named_parameters()})

    seed_everything(0, verbose=False)
    layers = [LayerLoss(Hint(), 1.0, "stage:0", "stage:0")]

    def adamw(parameters):  # moves whatever has a gradient, even of zero, by weight decay
        return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.5)

    recipe = Watch(ConvNet((4, 8)), 10, teacher=teacher(), layer_losses=layers, hint_epochs=1, optimizer=adamw,
                   scheduler=None)  # fmt: skip
    recipe.seen = []
    fit(recipe, epochs=2)

    def moved(first, last):
        a, b = recipe.seen[first], recipe.seen[last]
        return {name for name in a if not torch.equal(a[name], b[name])}

    below = {name for name in recipe.seen[0] if name.startswith(("encoder.network.0", "encoder.network.1"))}
    regressor = {name for name in recipe.seen[0] if name.startswith("layer_losses")}
    assert moved(0, 2) == below | regressor
    assert below
    assert regressor
    assert moved(3, 5) == set(recipe.seen[0]) - regressor


# Cached logits


def test_cached_logits_give_the_run_that_asking_every_time_gives(tmp_path):
    ends = []
    for teacher_logits in ("cached", "online"):
        recipe = student(teacher_logits=teacher_logits, logits_folder=str(tmp_path), views=Compose([]))
        fit(recipe, epochs=2)
        ends.append(recipe.state_dict())
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-4, atol=1e-6)


def test_with_cached_logits_the_view_of_an_image_is_always_the_same_and_the_teachers(float64):
    recipe, batch = recipe_and_batch(teacher_logits="cached", views=RandomAffine(translate=0.3))
    first = recipe.view(batch, 0)
    recipe.trainer.fit_loop.epoch_progress.current.completed = 5
    assert recipe.current_epoch == 5
    assert torch.equal(first, recipe.view(batch, 7))
    shuffled = Batch(*(part.flip(0) for part in batch))
    assert torch.equal(first.flip(0), recipe.view(shuffled, 0))


def test_cached_logits_are_computed_once_for_one_teacher_data_and_views(tmp_path):
    asked = []

    def made(views=None, seed=1, size=8):
        recipe = student(
            teacher=teacher(seed), teacher_logits="cached", logits_folder=str(tmp_path), views=views,
            encoder=MLP(size, hidden=(8,)),
        )  # fmt: skip
        recipe.teacher.register_forward_pre_hook(lambda module, args: asked.append(len(args[0])))
        trainer = quiet_trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=0)
        trainer.fit(recipe, Digits(size=size, batch_size=64))
        total = sum(asked)
        asked.clear()
        return total, len(list(tmp_path.glob("*.npy")))

    images, files = made()
    assert images > 1000
    assert files == 1
    assert made()[0] < 20
    assert made()[1] == 1
    assert made(views=RandomAffine(translate=0.2))[1] == 2
    assert made(seed=2)[1] == 3
    assert made(size=16)[1] == 4
    assert not list(tmp_path.glob("*.unfinished"))


def test_logits_of_pictures_that_were_replaced_are_computed_again(tmp_path):
    root = tmp_path / "pictures"
    for i in range(30):
        path = root / str(i % 10) / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 8 * i).save(path)

    def logits():
        data = ImageFolder(root, 8, 1, val_fraction=0, test_fraction=0, memory_limit=0, batch_size=10, num_workers=0)
        recipe = student(teacher_logits="cached", logits_folder=str(tmp_path / "logits"))
        quiet_trainer(max_epochs=1).fit(recipe, data)
        return recipe.cached.path, torch.from_numpy(recipe.cached.logits.copy())

    path, before = logits()
    assert logits()[0] == path
    last = root / "9" / "9.bmp"  # not among the first images, by which a file is checked
    Image.new("L", (8, 8), 200).save(last)
    other, after = logits()
    assert other != path
    assert (before != after).any(1).nonzero().flatten().tolist() == [29]


def test_logits_that_nobody_reads_are_not_computed(tmp_path):
    fit(student(teacher_logits="cached", logits_folder=str(tmp_path), soft_weight=0.0), epochs=1)
    assert not list(tmp_path.iterdir())


def test_file_of_logits_that_was_damaged_is_refused(tmp_path):
    fit(student(teacher_logits="cached", logits_folder=str(tmp_path)), epochs=1)
    (path,) = tmp_path.glob("*.npy")
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="delete the file and run again"):
        fit(student(teacher_logits="cached", logits_folder=str(tmp_path)), epochs=1)


# Checkpoints


@pytest.fixture(scope="module")
def runs_of_digits(tmp_path_factory):
    """Two short runs of a teacher."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in ("1", "2"):
        short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_test_batches=0"]
        small = ["--data.size=8", "--model.encoder.image_size=8", "--model.scheduler=null"]
        quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
        hidden = "--model.encoder.hidden=[8]"
        main(["fit", "--config=teacher-digits", "--seed_everything", seed, "--runs", str(folder), hidden]
             + short + small + quiet)  # fmt: skip
    return folder / "teacher-digits"


def command(folder, teacher_runs, *arguments):
    """Runs two batches of a student of a digits teacher, and gives the directory of the run."""
    options = {
        "config": "distill-digits", "runs": folder / "runs", "model.teacher": teacher_runs, "data.size": 8,
        "model.encoder.image_size": 8, "model.encoder.hidden": "[8]", "model.scheduler": "null",
        "model.logits_folder": folder / "logits", "trainer.max_epochs": 1, "trainer.limit_train_batches": 2,
        "trainer.limit_test_batches": 0, "trainer.enable_progress_bar": "false", "trainer.accelerator": "cpu",
    }  # fmt: skip
    main(["fit", *(f"--{name}={value}" for name, value in options.items()), *arguments])
    return max((folder / "runs" / "distill-digits").iterdir())


def test_directory_of_runs_stands_for_the_newest(tmp_path, runs_of_digits):
    oldest, newest = sorted(runs_of_digits.iterdir())
    assert teacher_from(str(runs_of_digits)).digest == teacher_from(str(newest)).digest
    assert teacher_from(str(oldest)).digest != teacher_from(str(newest)).digest


def test_several_runs_teach_together_and_a_student_teaches_the_next(tmp_path, runs_of_digits):
    both = [str(run) for run in sorted(runs_of_digits.iterdir())]
    together = teacher_from(both)
    image = torch.rand(2, 1, 8, 8)
    logits = [teacher_from(one)(image) for one in both]
    torch.testing.assert_close(together(image), (logits[0] + logits[1]) / 2)
    first = command(tmp_path, f"[{', '.join(both)}]")
    born_again = command(tmp_path, first)
    note = torch.load(born_again / "checkpoints" / "last.ckpt", weights_only=True)["teacher"]
    assert note["sources"] == [str(first / "checkpoints" / "last.ckpt")]


def test_checkpoint_names_the_teacher_and_holds_it_only_where_asked(tmp_path, runs_of_digits):
    for kept in (False, True):
        directory = command(tmp_path, runs_of_digits, "--model.keep_teacher", str(kept).lower())
        checkpoint = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)
        note = checkpoint["teacher"]
        assert note["sha256"] == teacher_from(str(runs_of_digits)).digest
        assert note["sources"] == [str(max(runs_of_digits.iterdir()) / "checkpoints" / "last.ckpt")]
        assert ("packed" in note) == kept
        assert not any("members" in name for name in checkpoint["state_dict"])


def test_run_goes_on_with_its_own_teacher_alone(tmp_path, runs_of_digits, capsys):
    teachers = tmp_path / "teachers"
    oldest, newest = sorted(runs_of_digits.iterdir())
    shutil.copytree(newest, teachers)
    directory = command(tmp_path, teachers)
    resume = ["--ckpt_path", str(directory), "--trainer.max_epochs", "2"]
    command(tmp_path, teachers, *resume)
    shutil.rmtree(teachers)
    shutil.copytree(oldest, teachers)
    with pytest.raises(SystemExit):
        command(tmp_path, teachers, *resume)
    assert "has other weights: give the first as --model.teacher" in capsys.readouterr().err


@pytest.mark.slow
def test_kept_teacher_lets_a_run_go_on_where_its_file_is_gone(tmp_path, runs_of_digits, capsys):
    teachers = tmp_path / "teachers"
    shutil.copytree(max(runs_of_digits.iterdir()), teachers)
    without, with_it = (
        command(tmp_path, teachers, "--model.keep_teacher", kept).rename(tmp_path / f"kept-{kept}")
        for kept in ("false", "true")
    )
    shutil.rmtree(teachers)
    longer = ["--trainer.max_epochs", "2", "--model.keep_teacher", "true"]
    command(tmp_path, teachers, "--ckpt_path", str(with_it), *longer)
    with pytest.raises(SystemExit):
        command(tmp_path, teachers, "--ckpt_path", str(without), *longer)
    assert "there is no teacher at" in capsys.readouterr().err


# Several devices


def two_devices(folder, cached, batch_size):
    """Trains a student in float64 on as many devices as there are processes; gives its weights."""
    seed_everything(0, verbose=False)
    layers = [LayerLoss(Of(), 0.5, "stage:0"), LayerLoss(AttentionTransfer(), 10.0, "stage:0")]
    recipe = student(
        ConvNet((4, 8)),
        layer_losses=() if cached else layers,
        hint_epochs=0 if cached else 1,
        teacher_logits="cached" if cached else "online",
        logits_folder=str(folder),
        views=RandomAffine(translate=0.2),
    )
    devices = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    trainer = quiet_trainer(
        max_epochs=2,
        limit_train_batches=3,
        limit_val_batches=1,
        precision="64-true",
        devices=devices,
        plugins=[CrossDeviceBatchNorm()] if devices > 1 else None,
    )
    before = recipe.teacher.digest
    asked = []

    def noted(teacher, image, trainer):
        asked.append(len(image))
        return forward(teacher, image, trainer)

    cached_logits.forward = noted
    trainer.fit(recipe, Digits(size=8, batch_size=batch_size))
    weights = {name: value.double().numpy() for name, value in recipe.state_dict().items()}
    return (
        weights,
        recipe.layer_losses.losses[0].images if not cached else None,
        before == digest(recipe.teacher.float()),
        sum(asked[1:]),  # after the first images, by which a file is known
    )


@pytest.mark.parametrize("cached", [False, True])
def test_two_devices_give_the_student_of_one(tmp_path, cached):
    ((one, images, _, all_asked),) = run(two_devices, tmp_path / "1", cached, 32)
    of_first, of_second = run(two_devices, tmp_path / "2", cached, 32, processes=2)
    (first, everyones, same, asked), (second, _, _, also_asked) = of_first, of_second
    assert asked + also_asked == all_asked, "the teacher sees each image once, on one of the devices"
    assert asked - also_asked in (0, 1)
    assert images == everyones
    assert same
    for name in one:
        assert abs(first[name] - second[name]).max() == 0, name
        assert abs(first[name] - one[name]).max() <= 1e-10 * max(1, abs(one[name]).max()), name


# Images of another size, and without labels


def test_a_teacher_sees_the_images_at_the_size_that_it_was_trained_on():
    member = Supervised(MLP(16, hidden=(8,)), 10, scheduler=None)  # takes images of no other size
    quiet_trainer(max_steps=1).fit(member, datamodule=Digits(16, batch_size=64))
    small = student(teacher=Teacher([member], ["here"]))
    fit(small, epochs=1)
    image = torch.rand(2, 1, 8, 8)
    enlarged = functional.interpolate(image, scale_factor=2, mode="bilinear", antialias=True)
    torch.testing.assert_close(small.teacher_logits(image), member.eval().classify(enlarged))


def test_a_folder_without_labels_is_enough_to_match_the_teacher_whose_classes_it_gets(tmp_path, runs_of_digits):
    write_pictures(tmp_path / "flat", ["."], 16, size=8)
    options = [f"--data.root={tmp_path / 'flat'}", "--data.image_size=8", "--data.channels=1", "--data.batch_size=8"]
    directory = command(
        tmp_path,
        runs_of_digits,
        "--model.soft_weight=1",
        "--data=ImageFolder",
        *options,
        "--trainer.log_every_n_steps=1",
    )
    checkpoint = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["class_names"] == list("0123456789")
    loaded = load(directory)
    assert loaded.class_names == tuple("0123456789")
    assert loaded.classify(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    rows = read_metrics(directory / "metrics.csv")
    assert all(row["train/hard_loss"] == 0 for row in rows if "train/hard_loss" in row)
    assert any(row.get("train/soft_loss", 0) > 0 for row in rows)


def test_a_folder_without_labels_is_refused_where_the_teacher_has_no_share(tmp_path, runs_of_digits, capsys):
    write_pictures(tmp_path / "flat", ["."], 16, size=8)
    options = [f"--data.root={tmp_path / 'flat'}", "--data.image_size=8", "--data.channels=1", "--data.batch_size=8"]
    with pytest.raises(SystemExit):
        command(tmp_path, runs_of_digits, "--model.soft_weight=0", "--data=ImageFolder", *options)
    assert "0 labelled training images for 10 classes" in capsys.readouterr().err
