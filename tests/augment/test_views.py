import inspect

import pytest
import torch
from jsonargparse import ArgumentParser

import recipes.augment
from recipes.augment import (
    BYOLViews,
    ColorJitter,
    Compose,
    DeiTViews,
    GaussianBlur,
    Grayscale,
    HandwritingViews,
    HorizontalFlip,
    InstanceDiscriminationViews,
    Key,
    MoCoV2Views,
    RandomAffine,
    RandomResizedCrop,
    SimCLRViews,
    Solarize,
    SupervisedViews,
    Views,
)

PAPERS = [
    SimCLRViews,
    InstanceDiscriminationViews,
    MoCoV2Views,
    BYOLViews,
    SupervisedViews,
    DeiTViews,
    HandwritingViews,
]


def key(n, seed=0, epoch=0, view=0):
    return Key(seed, epoch, torch.arange(n), view)


def images(n, channels, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def in_parts(views, image, key, size, order):
    parts = [views(image[part], key._replace(index=key.index[part])) for part in order.split(size)]
    result = torch.empty_like(torch.cat(parts))
    result[order] = torch.cat(parts)
    return result


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("views", PAPERS)
def test_same_key_gives_the_same_bits_in_every_batch_and_order(views, channels):
    for size in (8, 28, 33, 96):
        image, views_ = images(24, channels, size), views()
        for view in (0, 1):
            whole = views_(image, key(24, view=view))
            for part in (1, 5, 24):
                order = torch.randperm(24, generator=torch.Generator().manual_seed(part))
                assert torch.equal(in_parts(views_, image, key(24, view=view), part, order), whole)


@pytest.mark.parametrize("views", PAPERS)
def test_the_number_of_threads_changes_nothing(views):
    image, threads = images(2, 1, 256), torch.get_num_threads()
    results = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            results += [views()(image, key(2)), in_parts(views(), image, key(2), 1, torch.arange(2))]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("views", PAPERS)
def test_float64_results_do_not_depend_on_the_batch_and_are_near_those_of_float32(views, channels):
    image = images(16, channels, 32)
    whole = views()(image, key(16))
    assert whole.dtype == torch.float64
    for size in (1, 3):
        parts = in_parts(views(), image, key(16), size, torch.arange(16))
        torch.testing.assert_close(parts, whole, atol=1e-12, rtol=0)
    torch.set_default_dtype(torch.float32)
    if views not in (BYOLViews, DeiTViews):  # they solarise: there a value at the threshold jumps
        torch.testing.assert_close(views()(image, key(16)).double(), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("views", PAPERS)
def test_uint8_and_float_images_give_the_same_view_in_0_1_and_stay_as_they_were(views, channels):
    image = images(32, channels, 20)
    floats = image.float() / 255
    before = floats.clone()
    result = views()(floats, key(32))
    assert torch.equal(result, views()(image, key(32)))
    assert torch.equal(floats, before)
    assert result.dtype == torch.float32
    assert result.shape == image.shape
    assert result.min() >= 0
    assert result.max() <= 1


@pytest.mark.parametrize("views", PAPERS)
def test_views_epochs_seeds_and_samples_differ(views):
    image = images(1, 3, 16).expand(8, -1, -1, -1)
    results = [views()(image, k) for k in (key(8), key(8, view=2), key(8, epoch=1), key(8, seed=1))]
    pixels = torch.cat(results).flatten(1)
    distance = torch.cdist(pixels, pixels) + torch.eye(len(pixels)) * 1e3
    assert distance.min() > 1e-3


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("views", [SupervisedViews, Compose])
def test_views_of_black_are_black_and_of_white_white_where_no_colour_changes(views, value):
    views_ = views() if views is SupervisedViews else Compose([RandomResizedCrop(9), GaussianBlur(p=1.0)])
    image = torch.full((256, 3, 33, 33), value, dtype=torch.uint8)
    result = views_(image, key(256))
    torch.testing.assert_close(result, torch.full_like(result, value / 255), atol=1e-6, rtol=0)
    assert result.max() <= 1


@pytest.mark.parametrize("views", [view for view in PAPERS if view is not HandwritingViews])
def test_size_sets_the_size_of_the_views(views):
    assert views(24)(images(2, 3, 40), key(2)).shape == (2, 3, 24, 24)
    assert views()(images(2, 3, 40), key(2)).shape == (2, 3, 40, 40)


def test_operations_are_drawn_with_the_key_folded_with_their_place():
    image = images(16, 3, 20)
    blur, solarize = GaussianBlur(p=0.5), Solarize(p=0.5)
    composed = Compose([blur, solarize])(image, key(16))
    assert torch.equal(composed, solarize(blur(image, key(16).fold_in(0)), key(16).fold_in(1)))


def test_a_pipeline_of_nothing_gives_the_image():
    image = images(2, 3, 5)
    assert torch.equal(Compose([])(image, key(2)), image.float() / 255)


def test_pipelines_nest():
    image = images(8, 3, 20)
    inner = Compose([HorizontalFlip(0.5), ColorJitter(0.4, 0.4, 0.4, 0.1)])
    expected = inner(image, key(8).fold_in(0))
    assert torch.equal(Compose([inner])(image, key(8)), expected)


def test_autocast_changes_nothing_even_where_an_operation_multiplies_matrices():
    class Transpose(Views):
        def view(self, image, key):
            return (image.mT @ torch.eye(image.shape[2])).clamp(0, 1)

    image, views = images(8, 3, 20), Compose([SimCLRViews(), Transpose()])
    expected = views(image, key(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(views(image, key(8)), expected)


def test_views_keep_no_state():
    for views in PAPERS:
        assert not views().state_dict()


def settings(compose):
    return [
        (type(op), {k: v for k, v in vars(op).items() if not k.startswith("_") and k != "training"})
        for op in compose.ops
    ]


CROP = (RandomResizedCrop, {"size": None, "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)})
FLIP = (HorizontalFlip, {"p": 0.5})
GREY = (Grayscale, {"p": 0.2})


def jitter(b, c, s, h, p=0.8, add=False):
    arguments = {"brightness": b, "contrast": c, "saturation": s, "hue": h, "p": p, "add_brightness": add}
    return ColorJitter, {**arguments, "needs_mean": True}


def blur(p):
    return GaussianBlur, {"sigma": (0.1, 2.0), "p": p, "kernel_size": None}


def test_the_papers_settings_are_the_defaults():
    assert settings(SimCLRViews()) == [CROP, FLIP, jitter(0.8, 0.8, 0.8, 0.2), GREY, blur(0.5)]
    crop = (RandomResizedCrop, {**CROP[1], "scale": (0.2, 1.0)})
    assert settings(MoCoV2Views()) == [crop, FLIP, jitter(0.4, 0.4, 0.4, 0.1), GREY, blur(0.5)]
    assert settings(InstanceDiscriminationViews()) == [crop, FLIP, GREY, jitter(0.4, 0.4, 0.4, 0.4, p=1.0)]
    byol = [CROP, FLIP, jitter(0.4, 0.4, 0.2, 0.1, add=True), GREY]
    assert settings(BYOLViews().first) == [*byol, blur(1.0), (Solarize, {"threshold": 0.5, "p": 0.0})]
    assert settings(BYOLViews().second) == [*byol, blur(0.1), (Solarize, {"threshold": 0.5, "p": 0.2})]
    assert settings(SupervisedViews()) == [CROP, FLIP]


def test_simclr_for_cifar_halves_the_strength_and_does_not_blur():
    assert settings(SimCLRViews(strength=0.5, blur=0.0))[2:] == [jitter(0.4, 0.4, 0.4, 0.1), GREY, blur(0.0)]


def test_instance_discrimination_for_cifar_does_not_flip():
    without = settings(InstanceDiscriminationViews(flip=0.0))
    assert without[1] == (HorizontalFlip, {"p": 0.0})
    assert without[::2] == settings(InstanceDiscriminationViews())[::2]


def test_without_jitter_and_grey_simclr_crops_flips_and_blurs_alone():
    image = images(64, 3, 20)
    expected = Compose([RandomResizedCrop(), HorizontalFlip()])(image, key(64))
    assert torch.equal(SimCLRViews(strength=0.0, grey=0.0, blur=0.0)(image, key(64)), expected)
    assert not torch.equal(SimCLRViews(strength=0.0, blur=0.0)(image, key(64)), expected)
    assert not torch.equal(SimCLRViews(grey=0.0, blur=0.0)(image, key(64)), expected)


@pytest.mark.parametrize("view", [0, 1])
def test_without_jitter_and_grey_byol_keeps_the_colours_but_for_solarisation(view):
    image, k = images(64, 3, 20), key(64, view=view)
    settings = {"strength": 0.0, "grey": 0.0}
    blur, solarize = (GaussianBlur(p=1.0), Solarize(p=0.0)) if view == 0 else (GaussianBlur(p=0.1), Solarize(p=0.2))
    moved = Compose([RandomResizedCrop(), HorizontalFlip()])(image, k)
    expected = solarize(blur(moved, k.fold_in(4)), k.fold_in(5))
    assert torch.equal(BYOLViews(**settings)(image, k), expected)
    for name in settings:
        assert not torch.equal(BYOLViews(**{**settings, name: 0.2})(image, k), expected)


def test_the_strength_of_byol_scales_all_magnitudes_of_the_jitter():
    for views in (BYOLViews(strength=0.5).first, BYOLViews(strength=0.5).second):
        assert settings(views)[2] == jitter(0.2, 0.2, 0.1, 0.05, add=True)


def test_byol_draws_even_and_odd_views_from_its_two_distributions():
    image, views = images(8, 3, 20), BYOLViews()
    for view, distribution in ((0, views.first), (1, views.second), (2, views.first), (3, views.second)):
        assert torch.equal(views(image, key(8, view=view)), distribution(image, key(8, view=view)))


def test_handwriting_is_never_mirrored():
    poses = HandwritingViews().ops[0]
    assert isinstance(poses, RandomAffine)
    determinant = torch.linalg.det(poses.matrix(key(2000), 28, 28)[:, :, :2])
    assert determinant.min() > 0


def test_every_view_can_be_written_in_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--views", type=Views)
    text = """
    class_path: recipes.augment.Compose
    init_args:
      ops:
        - class_path: recipes.augment.RandomResizedCrop
          init_args: {size: 16, scale: [0.2, 1.0]}
        - recipes.augment.HorizontalFlip
        - class_path: recipes.augment.ColorJitter
          init_args: {brightness: 0.4}
    """
    views = parser.instantiate_classes(parser.parse_args([f"--views={text}"])).views
    assert [type(op) for op in views.ops] == [RandomResizedCrop, HorizontalFlip, ColorJitter]
    assert views(images(2, 3, 20), key(2)).shape == (2, 3, 16, 16)
    for views_ in PAPERS:
        parsed = parser.instantiate_classes(parser.parse_args([f"--views=recipes.augment.{views_.__name__}"]))
        assert type(parsed.views) is views_


def test_everything_exported_exists_and_every_operation_is_exported():
    exported = set(recipes.augment.__all__)
    classes = {name for name in vars(recipes.augment) if inspect.isclass(vars(recipes.augment)[name])}
    assert exported == classes | {"integers", "partners", "permutation", "uniform"}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: SimCLRViews(strength=3.0), "strength is 3.0"),
        (lambda: SimCLRViews(blur=2.0), "p is 2.0"),
        (lambda: SimCLRViews(grey=2.0), "p is 2.0"),
        (lambda: BYOLViews(strength=5.1), r"strength is 5.1: it must be between 0 .* and 5.0"),
        (lambda: BYOLViews(strength=-0.1), "strength is -0.1"),
        (lambda: BYOLViews(grey=-0.5), "p is -0.5"),
        (lambda: SimCLRViews()(torch.rand(2, 3, 8, 8), key(3)), "2 images need as many"),
        (lambda: SimCLRViews()(torch.rand(3, 8, 8), key(3)), r"\[B, C, H, W\]"),
        (lambda: SimCLRViews()(torch.zeros(2, 3, 8, 8, dtype=torch.int32), key(2)), "must be uint8"),
    ],
)
def test_views_refuse_what_they_cannot_read(run, message):
    with pytest.raises(ValueError, match=message):
        run()
