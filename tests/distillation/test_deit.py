import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything

from datamodules import Batch, Digits, Subset
from recipes import SimCLR, Supervised
from recipes.augment import DeiTViews, Key, SupervisedViews
from recipes.distillation.deit import DeiT
from recipes.distillation.teacher import Teacher
from recipes.nn import ConvNet, ViT
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def vit(pool="tokens"):
    return ViT(8, 4, dim=12, depth=1, heads=2, in_channels=1, pool=pool)


def cnn(seed=0):
    torch.manual_seed(seed)
    return Teacher([Supervised(ConvNet((4, 6)), 10)], ["a convolutional network"])


def build(recipe=DeiT, **arguments):
    seed_everything(0, verbose=False)
    sgd = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731
    given = {"optimizer": sgd, "scheduler": None, "lr_batch_size": None, "teacher": cnn(), **arguments}
    return recipe(given.pop("encoder", None) or vit(), 10, **given)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def stepping(**arguments):
    """A recipe in float64 that makes training steps without a Trainer, and a batch."""
    recipe = build(**arguments).double()
    if recipe.has_teacher:
        recipe.teacher.double()
    recipe.trainer = SimpleNamespace(world_size=1, current_epoch=0, global_step=0)
    recipe.log = lambda *_, **__: None
    data = Subset(Digits(size=8), per_class=2, batch_size=19)
    data.setup()
    return recipe, next(iter(data.train_dataloader()))


def gradients(recipe, batch):
    recipe.zero_grad()
    recipe.training_step(batch, 0).backward()
    return {name: p.grad.clone() for name, p in recipe.named_parameters()}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("distillation", "weight"), [("hard", None), ("soft", None), ("hard", 0.7), ("soft", 0.7)])
def test_the_loss_of_mixed_images_is_that_of_a_loop_over_them(distillation, weight):
    recipe, batch = stepping(distillation=distillation, distillation_weight=weight, mixup=0.8, cutmix=1.0)
    image, share = recipe.mixed_view(batch, 0)
    assert 0 < share.min() < 1  # some are mixed
    teacher = recipe.teacher.members[0]
    said = teacher.head(teacher.encoder(teacher.normalize(image)))
    feature = recipe.encoder(recipe.normalize(image))
    total, n = 0, len(image)
    assert n == 19  # so that the last is left alone
    for i in range(n):
        of_class = recipe.head.weight @ feature[i, :12] + recipe.head.bias
        of_distillation = recipe.distillation_head.weight @ feature[i, 12:] + recipe.distillation_head.bias
        partner = i if i == n - 1 else i + 1 - 2 * (i % 2)
        target = torch.full((10,), 0.1 / 10)
        target[batch.label[i]] += 0.9 * share[i]
        target[batch.label[partner]] += 0.9 * (1 - share[i])
        labels = -(target * (of_class - of_class.logsumexp(0))).sum()
        if distillation == "hard":
            taught = of_distillation.logsumexp(0) - of_distillation[max(range(10), key=lambda c: said[i, c].item())]
        else:
            p = torch.exp(said[i] / 3) / torch.exp(said[i] / 3).sum()
            taught = -9 * sum(
                p[c] * (of_distillation[c] / 3 - torch.logsumexp(of_distillation / 3, 0)) for c in range(10)
            )
        share_of_teacher = weight or {"hard": 0.5, "soft": 0.1}[distillation]
        total += ((1 - share_of_teacher) * labels + share_of_teacher * taught) / n
    torch.testing.assert_close(recipe.training_step(batch, 0), total, rtol=1e-6, atol=0)  # λ has float32


@pytest.mark.usefixtures("float64")
def test_the_hard_target_does_not_depend_on_the_temperature_and_the_soft_does():
    losses = {}
    for distillation in ("hard", "soft"):
        for temperature in (1.0, 3.0):
            recipe, batch = stepping(distillation=distillation, temperature=temperature)
            losses[distillation, temperature] = recipe.training_step(batch, 0).item()
    assert losses["hard", 1.0] == losses["hard", 3.0]
    assert losses["soft", 1.0] != losses["soft", 3.0]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("distillation", ["hard", "soft"])
def test_the_teacher_trains_only_the_distillation_head_and_labels_the_class_head(distillation):
    recipe, batch = stepping(distillation=distillation)
    first = gradients(recipe, batch)
    other_labels = gradients(recipe, batch._replace(label=(batch.label + 1) % 10))
    recipe._teacher = [cnn(seed=1).double()]
    other_teacher = gradients(recipe, batch)
    assert torch.equal(first["head.weight"], other_teacher["head.weight"])
    assert not torch.equal(first["distillation_head.weight"], other_teacher["distillation_head.weight"])
    assert torch.equal(first["distillation_head.weight"], other_labels["distillation_head.weight"])
    assert not torch.equal(first["head.weight"], other_labels["head.weight"])


@pytest.mark.usefixtures("float64")
def test_images_without_a_label_learn_from_the_teacher_alone():
    recipe, batch = stepping()
    found = gradients(recipe, batch._replace(label=torch.full_like(batch.label, -1)))
    assert not found["head.weight"].any()
    assert found["distillation_head.weight"].any()


@pytest.mark.parametrize("training", [False, True])
def test_the_prediction_is_the_mean_of_both_heads_in_either_mode(training):
    recipe = build().train(training)
    image = torch.rand(5, 1, 8, 8)
    tokens = recipe.encoder(recipe.normalize(image))
    of_class, of_distillation = recipe.head(tokens[:, :12]), recipe.distillation_head(tokens[:, 12:])
    torch.testing.assert_close(recipe.classify(image), (of_class + of_distillation) / 2)
    predicted = recipe.predict_step(Batch(image, torch.zeros(5).long(), torch.arange(5)), 0)
    torch.testing.assert_close(predicted["probability"], ((of_class + of_distillation) / 2).softmax(1))


@pytest.mark.usefixtures("float64")
def test_teacher_and_student_see_the_same_tensor_once():
    recipe, batch = stepping()
    seen = []
    for module in (recipe.normalize, recipe.teacher):
        module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    recipe.training_step(batch, 0)
    assert len(seen) == 2
    assert seen[0] is seen[1]
    assert not torch.equal(seen[0], recipe.views(batch.image, recipe.key(batch).fold_in(0)))  # it is mixed
    assert torch.equal(seen[0], recipe.mixed_view(batch, 0)[0])


@pytest.mark.usefixtures("float64")
def test_an_image_that_comes_again_has_another_view_and_is_mixed_otherwise():
    recipe, batch = stepping()
    assert not torch.equal(recipe.mixed_view(batch, 0)[1], recipe.mixed_view(batch, 1)[1])
    recipe.mix = None
    assert not torch.equal(recipe.mixed_view(batch, 0)[0], recipe.mixed_view(batch, 1)[0])
    assert torch.equal(recipe.mixed_view(batch, 1)[0], recipe.mixed_view(batch, 1)[0])


def test_the_teacher_stays_as_it_was_and_is_no_part_of_the_student():
    recipe = build()
    before, digest = copy.deepcopy(recipe.teacher.state_dict()), recipe.teacher.digest
    ours = copy.deepcopy(recipe.state_dict())
    quiet_trainer(max_epochs=1, limit_train_batches=3, limit_val_batches=1).fit(recipe, Digits(size=8, batch_size=64))
    recipe.train()
    after = recipe.teacher.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert recipe.teacher.digest == digest
    assert not any(module.training for module in recipe.teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in recipe.teacher.parameters())
    held = {id(p) for p in recipe.parameters()}
    assert not any(id(p) in held for p in recipe.teacher.parameters())
    moved = {name for name, value in recipe.state_dict().items() if not torch.equal(value, ours[name])}
    assert {"head.weight", "distillation_head.weight", "encoder.network.distillation_token"} <= moved


@pytest.mark.usefixtures("float64")
def test_without_a_teacher_the_class_token_learns_from_labels_alone():
    recipe, batch = stepping(encoder=vit("token"), teacher=None, mixup=0.0, cutmix=0.0, views=SupervisedViews())
    assert recipe.distillation_head is None
    image, share = recipe.mixed_view(batch, 0)
    assert share is None
    logits = recipe.head(recipe.encoder(recipe.normalize(image)))
    expected = torch.nn.functional.cross_entropy(logits, batch.label, label_smoothing=0.1)
    torch.testing.assert_close(recipe.training_step(batch, 0), expected)


def test_the_settings_of_the_paper_are_the_defaults():
    recipe = DeiT(vit(), 10, cnn())
    assert (recipe.hard, recipe.distillation_weight) == (True, 0.5)
    assert DeiT(vit(), 10, cnn(), "soft").distillation_weight == 0.1
    assert recipe.soft_target.temperature == 3.0
    assert recipe.label_smoothing == 0.1
    assert isinstance(recipe.views, DeiTViews)
    optimizer = recipe.optimizer(recipe.parameter_groups())
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (5e-4, 0.05)
    assert recipe.lr_batch_size == 512
    share = torch.cat([recipe.mix(torch.zeros(2, 1, 8, 8), Key(0, e, torch.arange(2)))[1] for e in range(50)])
    assert 0.3 < share.mean() < 0.7
    assert recipe.mix.cutmix_share == 0.5


class SomeLabels(DeiT):
    def training_step(self, batch, batch_idx):
        label = torch.where(batch.index % 3 == 0, -1, batch.label)  # more on one device than on the other
        return super().training_step(batch._replace(label=label), batch_idx)


def trained(devices, distillation):
    recipe = build(SomeLabels, distillation=distillation)
    steps = {"max_steps": 4, "limit_val_batches": 0, "precision": "64-true"}
    quiet_trainer(devices, **steps).fit(recipe, Digits(size=8, batch_size=24, num_workers=0))
    return {name: value.numpy() for name, value in recipe.state_dict().items()}


@pytest.mark.parametrize("distillation", ["hard", "soft"])
def test_two_processes_learn_what_one_learns(distillation):
    (expected,) = run(trained, 1, distillation)
    for found in run(trained, 2, distillation, processes=2):
        assert found.keys() == expected.keys()
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": vit("token")}, "ViT has no distillation token .* pool 'tokens'"),
        ({"encoder": ConvNet((4, 6))}, "ConvNet has no distillation token .* TeacherStudent"),
        ({"teacher": None}, "no teacher for the distillation token: give one, or set the encoder's pool to 'token'"),
        ({"distillation": "warm"}, "distillation is 'warm': it must be 'hard' or 'soft'"),
        ({"distillation_weight": 1.5}, "distillation_weight is 1.5"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"mixup": -1.0}, "mixup is -1.0"),
    ],
)
def test_what_does_not_suit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_a_teacher_that_knows_no_classes_is_refused_when_training_starts():
    teacher = Teacher([SimCLR(ConvNet((4, 6)))], ["runs/simclr"])
    with pytest.raises(ValueError, match="the teacher runs/simclr has no classification head"):
        quiet_trainer(max_steps=1).fit(build(teacher=teacher), Digits(size=8))
