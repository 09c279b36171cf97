"""The random views that papers define."""

from torch import Tensor

from recipes.augment.base import Views
from recipes.augment.colour import ColorJitter, Grayscale, Intensity
from recipes.augment.compose import Compose
from recipes.augment.erasing import RandomErasing
from recipes.augment.filters import GaussianBlur, Solarize
from recipes.augment.geometry import HorizontalFlip, RandomAffine, RandomResizedCrop
from recipes.augment.keys import Key
from recipes.augment.rand_augment import RandAugment


class SimCLRViews(Compose):
    """Views of SimCLR (Chen et al., 2020, arXiv:2002.05709, Appendix A): crop, flip, colour distortion, blur.

    For CIFAR-10 the paper takes ``strength=0.5, blur=0.0`` (Appendix B.9).

    Args:
        size: height and width of a view in pixels; None is the size of the image.
        strength: s of the colour distortion, at least 0 and at most 2.5, where hue turns half the circle.
        blur: the share of views that are blurred.
        scale: range of the crop's area, as a share of the image's.
        grey: the share of views that lose their colour. With ``strength`` 0 too, colours stay as they are.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        size: int | None = None,
        strength: float = 1.0,  # Appendix A, get_color_distortion(s=1.0)
        blur: float = 0.5,  # Appendix A, Gaussian blur
        scale: tuple[float, float] = (0.08, 1.0),  # Appendix A, random crop and resize
        grey: float = 0.2,  # Appendix A, color drop
    ) -> None:
        s = _strength(strength, 2.5)
        super().__init__(
            [
                RandomResizedCrop(size, scale),
                HorizontalFlip(0.5),  # Appendix A
                ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8),  # Appendix A, color distortion
                Grayscale(grey),
                GaussianBlur((0.1, 2.0), p=blur),  # Appendix A: sigma, and a kernel of a tenth of the image
            ]
        )


class InstanceDiscriminationViews(Compose):
    """Views of instance discrimination (Wu et al., 2018, arXiv:1805.01978, published code): crop, flip, grey, jitter.

    They are also those of the first version of MoCo (He et al., 2020, arXiv:1911.05722, Section 3.3, and its code).
    For CIFAR-10 the published code of instance discrimination takes ``flip=0.0``.

    Args:
        size: height and width of a view in pixels; None is the size of the image.
        scale: range of the crop's area, as a share of the image's.
        flip: the share of views that are flipped; 0 where left and right differ in meaning.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        size: int | None = None,
        scale: tuple[float, float] = (0.2, 1.0),  # both codes, as is the rest
        flip: float = 0.5,
    ) -> None:
        super().__init__(
            [
                RandomResizedCrop(size, scale),
                HorizontalFlip(flip),  # it stands last there, which makes no difference
                Grayscale(0.2),  # before the jitter, whose hue and saturation then do nothing
                ColorJitter(0.4, 0.4, 0.4, 0.4),
            ]
        )


class MoCoV2Views(Compose):
    """Views of MoCo v2 (Chen et al., 2020, arXiv:2003.04297, Section 3, and its published code).

    Args:
        size: height and width of a view in pixels; None is the size of the image.
        blur: the share of views that are blurred.
        scale: range of the crop's area, as a share of the image's.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        size: int | None = None,
        blur: float = 0.5,  # code, aug_plus: GaussianBlur([.1, 2.]), p=0.5
        scale: tuple[float, float] = (0.2, 1.0),  # code, RandomResizedCrop(224, scale=(0.2, 1.))
    ) -> None:
        super().__init__(
            [
                RandomResizedCrop(size, scale),
                HorizontalFlip(0.5),  # code; it stands last there, which makes no difference
                ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),  # code, aug_plus
                Grayscale(0.2),  # code, aug_plus
                GaussianBlur((0.1, 2.0), p=blur),
            ]
        )


class BYOLViews(Views):
    """Views of BYOL (Grill et al., 2020, arXiv:2006.07733, Appendix B): two distributions, T and T'.

    Views with an even number come from T and views with an odd number from T' (Table 6). ``strength=0.0, grey=0.0`` is
    the ablation without colour (Table 17); there, too, T' solarises.

    Brightness is added to all values (Appendix B, "offset", and published code). The published code takes contrast
    about the mean of each channel and changes saturation in HSV; here both are those of ``ColorJitter``.

    Args:
        size: height and width of a view in pixels; None is the size of the image.
        scale: range of the crop's area, as a share of the image's.
        strength: factor on all magnitudes of the colour jitter, at least 0 and at most 5, where hue turns half the
            circle.
        grey: the share of views that lose their colour.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        size: int | None = None,
        scale: tuple[float, float] = (0.08, 1.0),  # Appendix B, random cropping
        strength: float = 1.0,
        grey: float = 0.2,  # Table 6, color dropping
    ) -> None:
        super().__init__()
        self.first = _byol(size, scale, strength, grey, blur=1.0, solarize=0.0)  # Table 6, T
        self.second = _byol(size, scale, strength, grey, blur=0.1, solarize=0.2)  # Table 6, T'

    def view(self, image: Tensor, key: Key) -> Tensor:
        """Draws a view of float images [B, C, H, W]."""
        return (self.first if key.view % 2 == 0 else self.second).view(image, key)


def _byol(
    size: int | None, scale: tuple[float, float], strength: float, grey: float, blur: float, solarize: float
) -> Compose:
    s = _strength(strength, 5.0)
    return Compose(
        [
            RandomResizedCrop(size, scale),
            HorizontalFlip(0.5),  # Table 6
            ColorJitter(0.4 * s, 0.4 * s, 0.2 * s, 0.1 * s, p=0.8, add_brightness=True),  # Table 6, Appendix B
            Grayscale(grey),
            GaussianBlur((0.1, 2.0), p=blur),  # Appendix B: kernel 23 of 224 pixels
            Solarize(0.5, p=solarize),  # Appendix B: threshold 0.5
        ]
    )


def _strength(strength: float, most: float) -> float:
    if not 0 <= strength <= most:
        raise ValueError(f"strength is {strength}: it must be between 0 (colours are not jittered) and {most}")
    return strength


class SupervisedViews(Compose):
    """The usual views for training a classifier: random crop and flip (Szegedy et al., 2015, arXiv:1409.4842).

    Args:
        size: height and width of a view in pixels; None is the size of the image.
        scale: range of the crop's area, as a share of the image's.
        flip: the share of views that are flipped; 0 where left and right differ in meaning.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        size: int | None = None,
        scale: tuple[float, float] = (0.08, 1.0),  # Szegedy et al., Section 6
        flip: float = 0.5,
    ) -> None:
        super().__init__([RandomResizedCrop(size, scale), HorizontalFlip(flip)])


class DeiTViews(Compose):
    """Views of DeiT (Touvron et al., 2021, arXiv:2012.12877, Table 9): crop, flip, RandAugment and random erasing.

    The images are then mixed, which the recipe does. DeiT's code has no colour jitter where there is RandAugment.

    Args:
        size: height and width of a view in pixels; None is the size of the image.
        scale: range of the crop's area, as a share of the image's.
        flip: the share of views that are flipped; 0 where left and right differ in meaning.
        magnitude: mean magnitude of RandAugment, in [0, 10].
        erasing: the share of views of which a rectangle is erased.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        size: int | None = None,
        scale: tuple[float, float] = (0.08, 1.0),  # published code, as is the next
        flip: float = 0.5,
        magnitude: float = 9.0,  # Table 9: 9/0.5
        erasing: float = 0.25,  # Table 9
    ) -> None:
        super().__init__(
            [
                RandomResizedCrop(size, scale),
                HorizontalFlip(flip),
                RandAugment(magnitude=magnitude),
                RandomErasing(erasing),
            ]
        )


class HandwritingViews(Compose):
    """Views of digits and letters: random slant, size, position and stroke, without mirroring.

    Args:
        degrees: the largest rotation in degrees.
        shear: the largest slant in degrees.
        scale: range of the magnification.
        translate: the largest shift, as a share of the image's side.
        gain: largest change of the factor on the strokes' intensity.
        offset: largest number that is added to or taken from all values, where values are in [0, 1].

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        degrees: float = 15.0,  # Cireşan et al., 2010, arXiv:1003.0358: beta
        shear: float = 15.0,  # Cireşan et al.: beta
        scale: tuple[float, float] = (0.8, 1.2),  # Cireşan et al.: gamma up to 20 %
        translate: float = 2 / 28,  # Hinton et al., 2015, arXiv:1503.02531, Section 3: two pixels of MNIST
        gain: float = 0.4,  # our choice, as is the next
        offset: float = 0.1,
    ) -> None:
        super().__init__([RandomAffine(degrees, translate, scale, shear), Intensity(gain, offset)])
