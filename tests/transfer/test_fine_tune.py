import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.cli import ReduceLROnPlateau
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from datamodules import Batch, Digits, ImagesInMemory, Subset
from datamodules.base import ImageDataModule, Splits
from recipes import FineTune
from recipes.augment import Key, Mix, Normalize, partners
from recipes.nn import ConvNet, Encoder, TorchvisionEncoder, ViT, stages
from recipes.transfer.l2_sp import StartingPoint
from recipes.transfer.modes import modes
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Dropping(Encoder):
    """Three stages, of which each has batch norm and dropout."""

    def __init__(self):
        layers = []
        for width, out in ((1, 4), (4, 6), (6, 8)):
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.Dropout(0.5)]
        super().__init__(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8, 1)


def build(which="fine-tune-all", encoder=None, **arguments):
    seed_everything(0, verbose=False)
    encoder = encoder or Dropping()
    encoder.pretrained = True
    sgd = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01)  # noqa: E731
    return FineTune(encoder, 10, which, **{"optimizer": sgd, "scheduler": None, "lr_batch_size": None, **arguments})


def fit(recipe, epochs=1, data=None, callbacks=(), **options):
    trainer = quiet_trainer(max_epochs=epochs, callbacks=list(callbacks), **{"limit_val_batches": 0, **options})
    trainer.fit(recipe, data or Digits(size=8, batch_size=128))
    return trainer


def of_stage(recipe, number, state):
    layers = tuple(f"{layer}." for layer in stages(recipe.encoder)[number].layers)
    return {name: value for name, value in state.items() if name.startswith(layers)}


def moved(recipe, before):
    """For each stage, whether anything in its state differs from what it was."""
    after = recipe.encoder.state_dict()
    return [
        any(not torch.equal(value, after[name]) for name, value in of_stage(recipe, number, before).items())
        for number in range(len(recipe.modes))
    ]


# Which stage is what


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("feature-extraction", "frozen frozen frozen"),
        ("fine-tune-last", "frozen frozen finetune"),
        ("fine-tune-all", "finetune finetune finetune"),
        ("from-scratch", "retrain retrain retrain"),
        ("gradual-unfreezing", "finetune finetune finetune"),
        ("layer-decay", "finetune finetune finetune"),
        ("frozen finetune retrain", "frozen finetune retrain"),
        ("frozen*2 retrain", "frozen frozen retrain"),
        ("finetune frozen... retrain", "finetune frozen retrain"),
        ("frozen*3 finetune...", "frozen frozen frozen"),
    ],
)
def test_stages_are_given_by_a_word_for_each_or_by_a_preset(text, expected):
    assert modes(text, Dropping()) == expected.split()


@pytest.mark.parametrize(
    "text", ["frozen", "frozen finetune", "frozen*4", "frozen*4 finetune...", "frozen*99999999999", ""]
)
def test_a_list_of_the_wrong_length_names_the_stages_there_are(text):
    with pytest.raises(ValueError, match=r"has 3 \(0, 4, 8\)"):
        modes(text, Dropping())


@pytest.mark.parametrize(
    "text",
    ["frozn finetune retrain", "frozen... finetune...", "frozen*x", "feature_extraction", "frozen*" + "9" * 5000],
)
def test_an_unknown_word_is_answered_with_those_there_are(text):
    with pytest.raises(ValueError, match="feature-extraction, .*frozen, finetune, retrain"):
        modes(text, Dropping())


# Frozen means frozen


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("feature-extraction", [False, False, False]),
        ("fine-tune-last", [False, False, True]),
        ("frozen finetune retrain", [False, True, True]),
        ("finetune frozen finetune", [True, False, True]),
        ("fine-tune-all", [True, True, True]),
    ],
)
def test_a_frozen_stage_is_bit_identical_after_training_with_its_statistics(which, expected):
    recipe = build(which, views=Nothing())
    before = copy.deepcopy(recipe.encoder.state_dict())
    head = recipe.head.weight.clone()
    fit(recipe)
    assert moved(recipe, before) == expected
    assert not torch.equal(recipe.head.weight, head)


class Nothing(nn.Module):
    """Views that are the images."""

    def forward(self, image, key):
        return image.float() / 255


class Watch(Callback):
    """Looks at a recipe in the middle of its training."""

    def __init__(self, look):
        self.look = look
        self.seen = []

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if trainer.global_step:
            self.seen.append(self.look(trainer, pl_module))


def test_a_frozen_stage_has_no_gradient_no_dropout_and_no_place_in_the_optimiser():
    def look(trainer, recipe):
        parameters = {p for group in trainer.optimizers[0].param_groups for p in group["params"]}
        return [
            (
                any(
                    p.grad is not None
                    for name, p in recipe.encoder.named_parameters()
                    if recipe.frozen.stage_of[name] == i
                ),
                any(m.training for layer in stage.layers for m in recipe.encoder.get_submodule(layer).modules()),
                any(
                    p in parameters
                    for name, p in recipe.encoder.named_parameters()
                    if recipe.frozen.stage_of[name] == i
                ),
            )
            for i, stage in enumerate(stages(recipe.encoder))
        ]

    watch = Watch(look)
    recipe = build("frozen finetune retrain")
    fit(recipe, callbacks=[watch], limit_val_batches=1)  # a validation puts modules into eval mode and back
    assert watch.seen == [[(False,) * 3, (True,) * 3, (True,) * 3]] * len(watch.seen) != []


def test_the_optimiser_has_exactly_the_trainable_parameters_even_if_values_are_equal():
    recipe = build("frozen finetune finetune")
    for parameter in recipe.parameters():
        nn.init.zeros_(parameter)  # what compares parameters by value takes them for one
    trainer = fit(recipe, max_steps=1)
    held = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {p for p in recipe.parameters() if p.requires_grad}
    assert len(held) == 2 + 2 * 4


def frozen_on_two():
    recipe = build("frozen finetune retrain", encoder=ConvNet((4, 6, 8)))
    before = copy.deepcopy(recipe.encoder.state_dict())
    trainer = fit(recipe, devices=2, strategy="ddp", max_steps=3)
    weights = torch.cat([p.detach().flatten() for p in recipe.parameters()])
    everyones = trainer.strategy.all_gather(weights)
    return moved(recipe, before), bool(torch.equal(everyones[0], everyones[1]))


def test_a_frozen_stage_stays_as_it_is_on_two_devices_which_end_equal():
    assert run(frozen_on_two, processes=2) == [([False, True, True], True)] * 2


def gradual_on_two():
    recipe = build("gradual-unfreezing", encoder=ConvNet((4, 6, 8)))
    before = copy.deepcopy(recipe.encoder.state_dict())
    fit(recipe, 2, devices=2, strategy="ddp")
    return moved(recipe, before)


def test_gradual_unfreezing_needs_nothing_special_on_two_devices():
    assert run(gradual_on_two, processes=2) == [[False, False, True]] * 2


# How fast a stage learns


def test_fine_tuned_stages_learn_slower_than_new_ones():
    recipe = build("frozen finetune retrain", finetune_factor=0.03)
    trainer = fit(recipe, max_steps=1)
    assert rates(trainer, recipe) == pytest.approx([0.003, 0.1, 0.1])


def test_layer_decay_is_a_power_of_the_distance_from_the_head():
    encoder = ViT(8, patch_size=4, dim=12, depth=3, heads=2, in_channels=1)
    recipe = build("layer-decay", encoder, layer_decay=0.5)
    trainer = fit(recipe, max_steps=1)
    assert rates(trainer, recipe) == pytest.approx([0.1 / 16, 0.1 / 8, 0.1 / 4, 0.1 / 2, 0.1])
    groups = trainer.optimizers[0].param_groups
    slowest = {p for group in groups if group["lr"] == pytest.approx(0.1 / 16) for p in group["params"]}
    assert {encoder.network.position, encoder.network.class_token, encoder.network.patches.weight} <= slowest


def rates(trainer, recipe):
    """The learning rate of each stage that learns, and of the head."""
    of = {p: group["lr"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    found = {}
    for name, parameter in recipe.encoder.named_parameters():
        if parameter in of:
            found.setdefault(recipe.frozen.stage_of[name], set()).add(of[parameter])
    assert all(len(lrs) == 1 for lrs in found.values())
    return [found[number].pop() for number in sorted(found)] + [of[recipe.head.weight]]


SCHEDULES = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 1, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 2]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=2),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 1), lr_scheduler.ExponentialLR(o, 0.9)], [1]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 1), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: ReduceLROnPlateau(o, "train/loss", patience=0, threshold=10, factor=0.5),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_scheduler_of_torch_keeps_the_ratio_of_the_learning_rates(name):
    seen = []

    class Rates(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(rates(trainer, pl_module))

    recipe = build("layer-decay", layer_decay=0.5, scheduler=SCHEDULES[name])
    fit(recipe, 3, data=Subset(Digits(size=8), per_class=2, batch_size=20), callbacks=[Rates()])
    head = [row[-1] for row in seen]
    assert all(row == pytest.approx([lr / 8, lr / 4, lr / 2, lr]) for row, lr in zip(seen, head, strict=True))
    assert len(set(head)) > 1 or name == "ConstantLR"


def test_gradual_unfreezing_lets_one_stage_more_learn_at_a_time_from_the_last_on():
    recipe = build("gradual-unfreezing", unfreeze_every_n_epochs=2)
    states = [copy.deepcopy(recipe.encoder.state_dict())]
    counts = []

    class Keep(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            states.append(copy.deepcopy(pl_module.encoder.state_dict()))
            counts.append(len(trainer.optimizers[0].state))

    fit(recipe, 7, data=Subset(Digits(size=8), per_class=4, batch_size=20), callbacks=[Keep()])
    changed = []
    for before, after in zip(states, states[1:]):
        recipe.encoder.load_state_dict(after)
        changed.append(sum(moved(recipe, before)))
        assert moved(recipe, before) == [False] * (3 - changed[-1]) + [True] * changed[-1]
    assert changed == [0, 0, 1, 1, 2, 2, 3]
    assert counts == [2, 2, 6, 6, 10, 10, 14]  # no momentum gathers while a stage waits


# Retraining


def test_a_retrained_stage_starts_anew_and_the_others_where_they_were():
    trained = ConvNet((4, 6, 8))
    before = copy.deepcopy(trained.state_dict())
    recipe = build("frozen finetune retrain", trained)
    assert moved(recipe, before) == [False, False, True]
    assert recipe.encoder.network[8].weight.std().item() == pytest.approx(
        before["network.8.weight"].std().item(), rel=0.3
    )


def test_from_scratch_knows_nothing_of_the_source():
    encoder = ConvNet((4, 6, 8))
    encoder.normalization = (0.9,), (0.01,)
    before = copy.deepcopy(encoder.state_dict())
    recipe = build("from-scratch", encoder)
    assert all(moved(recipe, before))
    data = Digits(size=8, batch_size=128)
    fit(recipe, data=data, max_steps=1)
    assert recipe.normalize.mean[0].item() == pytest.approx(data.mean[0])


def test_an_encoder_around_a_network_of_ones_own_cannot_be_made_anew():
    with pytest.raises(ValueError, match="cannot be made anew"):
        build("from-scratch", Encoder(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), 4, 1))


def test_images_are_normalised_as_those_that_the_weights_were_trained_on():
    encoder = ConvNet((4, 6, 8))
    encoder.normalization = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    recipe = build("fine-tune-last", encoder)
    fit(recipe, max_steps=1)
    expected = Normalize()
    expected.set((0.2,), (0.5,))  # a grey image has the mean over the channels
    image = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    assert torch.allclose(recipe.normalize(image), expected(image))


# The loss


def recipe_and_batch(**arguments):
    recipe = build(views=Nothing(), **arguments).double()
    recipe.trainer = SimpleNamespace(world_size=1, current_epoch=0, global_step=0)
    recipe.log = lambda *_, **__: None
    data = Subset(Digits(size=8), per_class=2, batch_size=19)
    data.setup()
    return recipe.eval(), next(iter(data.train_dataloader()))


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_l2_sp_pulls_towards_the_start_and_not_towards_zero(float64):
    recipe, batch = recipe_and_batch(which="frozen finetune retrain", l2_sp=0.3)
    plain = recipe.training_step(batch, 0).item()
    distance = 0.0
    for name, parameter in recipe.encoder.named_parameters():
        with torch.no_grad():
            parameter.add_(0.01)
        distance += 0.01**2 * parameter.numel() * (recipe.frozen.stage_of[name] == 1)
    tied, recipe.l2_sp = recipe.training_step(batch, 0), 0.0
    assert tied.item() - recipe.training_step(batch, 0).item() == pytest.approx(0.15 * distance, rel=1e-9)
    assert plain != tied.item()


def test_the_distance_to_the_starting_point_is_in_float32_for_weights_in_bfloat16():
    weight = torch.nn.Parameter(torch.tensor([1.0, 3.0], dtype=torch.bfloat16))
    start = StartingPoint([torch.zeros(2)]).bfloat16()
    distance = start.squared_distance([weight])
    distance.backward()
    assert (distance.dtype, distance.item()) == (torch.float32, 10)
    assert weight.grad.tolist() == [2, 6]


def test_l2_sp_takes_the_place_of_weight_decay_and_is_in_checkpoints():
    recipe = build("frozen finetune retrain", l2_sp=0.3)
    decay = {p: group.get("weight_decay") for group in recipe.parameter_groups() for p in group["params"]}
    conv = [module for module in recipe.encoder.modules() if isinstance(module, nn.Conv2d)]
    assert decay[conv[1].weight] == 0.0
    assert decay[conv[2].weight] is None  # the optimiser's
    assert decay[recipe.head.weight] is None
    saved = recipe.state_dict()
    assert torch.equal(saved["start.0"], conv[1].weight)
    assert {name for name in saved if name.startswith("start.")} <= set(recipe._ddp_params_and_buffers_to_ignore)


def test_l2_sp_without_a_fine_tuned_stage_is_an_error():
    with pytest.raises(ValueError, match="l2_sp is for fine-tuned stages"):
        build("frozen... retrain", l2_sp=0.1)


class Skewed(ImageDataModule):
    """Three classes of very different sizes, and an unlabelled image."""

    label = torch.tensor([0] * 12 + [1] * 3 + [2] * 4 + [-1])

    def load(self):
        image = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return Splits(("a", "b", "c"), ImagesInMemory(image, self.label))


def test_balanced_class_weights_are_those_of_scikit_learn_and_in_checkpoints():
    recipe = FineTune(Dropping(), 3, class_weights="balanced", scheduler=None)
    fit(recipe, data=Skewed(batch_size=10), max_steps=1)
    label = Skewed.label[:-1].numpy()
    expected = compute_class_weight("balanced", classes=np.arange(3), y=label)
    assert recipe.class_weight.tolist() == pytest.approx(expected.tolist())
    assert "class_weight" in recipe.state_dict()


def test_the_loss_of_mixed_images_is_that_of_their_mixed_targets(float64):
    recipe, batch = recipe_and_batch(mixup=0.4, cutmix=1.0, label_smoothing=0.1)
    loss = recipe.training_step(batch, 3)
    image, share = recipe.mix(batch.image.double() / 255, recipe.key(batch, view=1).fold_in(3))
    target = share[:, None] * F.one_hot(batch.label, 10) + (1 - share)[:, None] * F.one_hot(partners(batch.label), 10)
    assert loss.item() == pytest.approx(
        F.cross_entropy(recipe.head(recipe(image)), target.double(), label_smoothing=0.1).item(), rel=1e-10
    )
    assert 0 < share.min() < 1 == share[-1]


# Features that are computed once


def test_features_of_a_frozen_encoder_are_computed_once():
    calls = []
    recipe = build("feature-extraction")
    recipe.encoder.register_forward_hook(lambda *_: calls.append(1))
    fit(recipe, 1, limit_val_batches=1)
    once = len(calls)
    recipe = build("feature-extraction")
    recipe.encoder.register_forward_hook(lambda *_: calls.append(1))
    del calls[:]
    fit(recipe, 5, limit_val_batches=1)
    assert len(calls) == once > 0


def test_training_on_features_computed_once_is_training_through_the_encoder(float64):
    data = Digits(size=8, batch_size=128)
    once, through = build("feature-extraction"), build("feature-extraction", views=Nothing64())
    for recipe in (once, through):
        fit(recipe, 3, data=data, precision="64-true")
    assert torch.allclose(once.head.weight, through.head.weight, rtol=1e-10, atol=1e-12)


class Nothing64(nn.Module):
    def forward(self, image, key):
        return image.double() / 255


def test_the_data_gives_images_again_to_the_next_recipe():
    data = Digits(size=8, batch_size=128)
    fit(build("feature-extraction"), data=data)
    fit(build("fine-tune-last"), data=data, max_steps=1)
    assert next(iter(data.train_dataloader())).image.ndim == 4


def test_mixing_images_whose_features_are_computed_once_is_an_error():
    with pytest.raises(ValueError, match="give views"):
        build("feature-extraction", mixup=0.2)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"finetune_factor": 0}, "finetune_factor is 0"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"unfreeze_every_n_epochs": 0}, "unfreeze_every_n_epochs is 0"),
        ({"l2_sp": -1}, "l2_sp is -1"),
        ({"label_smoothing": 1}, "label_smoothing is 1"),
        ({"mixup": -0.1}, "mixup is -0.1"),
        ({"class_weights": "even"}, "class_weights is 'even'"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        build(**arguments)


def test_one_class_only_is_an_error():
    with pytest.raises(ValueError, match="num_classes is 1: classification needs at least 2"):
        FineTune(Dropping(), 1)


def test_fewer_images_than_classes_is_an_error():
    class Few(Skewed):
        label = torch.tensor([0, 1] + [-1] * 18)

    with pytest.raises(ValueError, match="2 labelled training images for 3 classes"):
        fit(FineTune(Dropping(), 3), data=Few(batch_size=10))


def test_a_checkpoint_of_another_network_names_the_layers(tmp_path):
    torch.save(TorchvisionEncoder("resnet18").state_dict(), tmp_path / "resnet18.pt")
    with pytest.raises(ValueError, match=r"does not fit this ConvNet.*network\.0\.weight"):
        ConvNet(weights=str(tmp_path / "resnet18.pt"))
    torch.save(ConvNet((32, 64, 96)).state_dict(), tmp_path / "narrow.pt")
    with pytest.raises(ValueError, match=r"of another shape \(network\.8\.weight \[96, 64, 3, 3\] for \[128"):
        ConvNet(weights=str(tmp_path / "narrow.pt"))


def test_a_frozen_encoder_that_was_never_trained_is_warned_of():
    recipe = FineTune(ConvNet((4, 6)), 10, "feature-extraction", scheduler=None)
    with pytest.warns(UserWarning, match="random weights"):
        fit(recipe, max_steps=1)


# Mixing


def test_partners_are_neighbours_and_the_last_of_an_odd_batch_is_alone():
    assert partners(torch.arange(5)).tolist() == [1, 0, 3, 2, 4]


def mixed(mix, count=2000, size=8):
    image = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))
    return image, *mix(image, Key(0, 0, torch.arange(count)))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_draws_from_the_beta_distribution_and_adds_the_images(alpha):
    from scipy import stats

    image, result, share = mixed(Mix(mixup=alpha))
    assert stats.kstest(share[::2], stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert torch.equal(share[::2], share[1::2])
    weight = share[:, None, None, None]
    assert torch.allclose(result, weight * image + (1 - weight) * partners(image), atol=1e-6)


def test_cutmix_pastes_one_box_and_its_share_is_what_is_left():
    from scipy import stats

    image, result, share = mixed(Mix(cutmix=1.0), size=32)
    own, other = result == image, result == partners(image)
    assert (own | other).all()
    assert torch.allclose(own.flatten(1).float().mean(1), share)
    for mask in other[:40, 0]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(rows):
            box = mask[rows[0, 0] : rows[-1, 0] + 1, columns[0, 0] : columns[-1, 0] + 1]
            assert box.all()
    uncut = torch.tensor([1 - u for u in torch.rand(100000, generator=torch.Generator().manual_seed(1)).tolist()])
    centre = torch.rand(100000, 2, generator=torch.Generator().manual_seed(2))
    side = uncut.sqrt() / 2
    area = math.prod(((centre[:, i] + side).clamp(max=1) - (centre[:, i] - side).clamp(min=0)).double() for i in (0, 1))
    assert stats.ks_2samp(1 - share[::2], area).statistic < 0.06  # up to rounding to pixels


def test_with_both_each_pair_gets_one():
    image, result, share = mixed(Mix(mixup=1.0, cutmix=1.0))
    pure = ((result == image) | (result == partners(image))).flatten(1).all(1)
    assert 0.4 < pure.float().mean() < 0.6


def test_mixing_half_a_batch_on_each_of_two_devices_is_mixing_the_batch():
    mix = Mix(mixup=0.4, cutmix=1.0)
    image, index = torch.rand(12, 3, 8, 8), torch.randperm(100)[:12]
    whole, share = mix(image, Key(1, 2, index))
    halves = [mix(image[part], Key(1, 2, index[part])) for part in (slice(0, 6), slice(6, 12))]
    assert torch.equal(torch.cat([half[0] for half in halves]), whole)
    assert torch.equal(torch.cat([half[1] for half in halves]), share)


def test_unlabelled_images_take_no_part(float64):
    recipe, batch = recipe_and_batch(which="fine-tune-all")
    hidden = batch._replace(label=batch.label.clone().index_fill_(0, torch.arange(5), -1))
    kept = Batch(*(x[5:] for x in batch))
    assert recipe.training_step(hidden, 0).item() == pytest.approx(recipe.training_step(kept, 0).item(), rel=1e-12)


@pytest.mark.parametrize("which", ["frozen finetune retrain", "gradual-unfreezing", "feature-extraction"])
def test_a_run_that_goes_on_after_an_epoch_ends_as_one_that_never_stopped(which, tmp_path):
    few = {"data": Subset(Digits(size=8), per_class=4, batch_size=20)}

    class Save(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    tied = {"l2_sp": 0.1} if "finetune" in which else {}
    whole = build(which, ConvNet((4, 6, 8)), **tied)  # without dropout, whose random numbers go on
    start = copy.deepcopy(whole.encoder.state_dict())
    fit(whole, 4, callbacks=[Save()], **few)
    other = build(which, ConvNet((4, 6, 8)), **tied)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)  # all that counts is in the checkpoint
    trainer = quiet_trainer(max_epochs=4, limit_val_batches=0)
    trainer.fit(other, few["data"], ckpt_path=str(tmp_path / "1.ckpt"), weights_only=True)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in other.state_dict().items())
    assert (
        moved(other, start)
        == {
            "frozen finetune retrain": [False, True, True],
            "gradual-unfreezing": [True, True, True],
            "feature-extraction": [False, False, False],
        }[which]
    )
