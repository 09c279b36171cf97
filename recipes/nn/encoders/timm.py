import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal

from torch import Tensor

from recipes.errors import nearest
from recipes.nn.encoders.base import Encoder, named_normalization
from recipes.nn.encoders.files import downloading
from recipes.nn.encoders.weights import load_weights

_INSTEAD = "give a file of them (--model.encoder.pretrained false --model.encoder.weights FILE)"


class TimmEncoder(Encoder):
    """Any network of timm, without its classifier. Needs the extra ``timm``.

    Args:
        name: name in ``timm.list_models()``, with or without a tag: ``resnet18``, ``vit_tiny_patch16_224``, ...
        in_channels: number of channels C of the images, 1 or 3. With ``pretrained`` and 1 channel, timm sums the first
            convolution over RGB.
        pretrained: whether to download the weights that timm has for ``name``.
        image_size: H and W of the images, for networks of a fixed size (most
            transformers). If null, uses the size of the network.
        weights: file of weights: of timm, a recipe or another program, or a folder of a timm model from Hugging Face
            (``load_weights``). If null, weights are those of ``pretrained``.
        normalization: mean and standard deviation of the images: ``imagenet``, for files that do not state them. If
            null, uses those that the weights were trained with or, if these are not known, those of the data.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if timm has no such network, or it takes no ``image_size``.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        pretrained: bool = False,
        image_size: int | None = None,
        weights: str | None = None,
        normalization: Literal["imagenet"] | None = None,
    ) -> None:
        try:
            import timm
        except ImportError as error:
            raise ImportError("TimmEncoder needs timm: pip install 'training-recipes[timm]'") from error
        if not timm.is_model(name):
            meant = nearest(name, timm.list_models())
            raise ValueError(f"timm has no model {name!r}{meant}: give a name that timm.list_models() lists")
        size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
        try:
            with downloading(f"pretrained weights of {name}", _INSTEAD) if pretrained else nullcontext():
                network = timm.create_model(name, pretrained=pretrained, in_chans=in_channels, num_classes=0, **size)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            raise ValueError(f"image_size is {image_size}, but {name} takes none: leave image_size out") from error
        super().__init__(network, _feature_dim(network), in_channels)
        self.pretrained = pretrained
        if pretrained:
            known: Any = network.pretrained_cfg
            self.normalization = tuple(known["mean"]), tuple(known["std"])
        stated = None if normalization is None else named_normalization(normalization)
        if weights is not None:
            load_weights(self, weights, normalization=stated)
        if stated is not None:
            self.normalization = stated

    def converted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Returns the weights that another program has for this network by timm's names; None if timm has no rule."""
        convert = getattr(sys.modules[type(self.network).__module__], "checkpoint_filter_fn", None)
        own = self.network.state_dict()
        if convert is None or any(
            value.ndim == 4 and name in own and own[name].shape != value.shape for name, value in state.items()
        ):  # timm would resample the kernels of other patches
            return None
        try:
            return dict(convert(dict(state), self.network))
        except Exception:  # a rule meets names that it was not written for
            return None


def _feature_dim(network: Any) -> int:
    # some networks have a layer between the pooling and the classifier, and its width is that of the features
    return getattr(network, "head_hidden_size", network.num_features)
