from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
from torch import nn
from torchvision import models

from recipes.errors import nearest
from recipes.nn.encoders.base import Encoder, named_normalization
from recipes.nn.encoders.files import downloading
from recipes.nn.encoders.group_norm import Norm, use_norm
from recipes.nn.encoders.weights import NULL, check_finite, load_weights, matched, with_choice

# besides norm layers and biases: as in the authors' code of DeiT, Swin (v1 and v2) and ConvNeXt
_NO_WEIGHT_DECAY = ("class_token", "pos_embedding", "relative_position_bias_table", "logit_scale", "layer_scale")


class TorchvisionEncoder(Encoder):
    """Any classification network of torchvision, without the linear layer that makes the logits.

    Auxiliary classifiers and the dropout just before the removed layer go too.

    Args:
        name: name in ``torchvision.models``: ``resnet18``, ``vit_b_16``, ``convnext_tiny``, ...
        in_channels: C, 1 or 3. A grey image counts as an RGB image of three equal channels: for 1, the first
            convolution is summed over its three input channels.
        stem: ``small`` is for images of about 32 pixels: the first convolution becomes 3 × 3 with stride 1 and starts
            at random, the first max-pooling goes (Chen et al., 2020, arXiv:2002.05709, Appendix B.9). ResNet, ResNeXt
            and Wide ResNet only.
        weights: name of torchvision weights (``DEFAULT``, ``IMAGENET1K_V2``; downloaded once), or a file of weights: of
            torchvision, a recipe or another program (``load_weights``). If null, weights are random.
        image_size: H and W of the images, for networks made for one size (``vit_*``, ``maxvit_t``; None is their 224).
        norm: ``batch`` leaves the network as it is; ``group`` puts group norm, with statistics of each image alone,
            in the place of batch norm.
        normalization: mean and standard deviation of the images: ``imagenet``, for files that do not state them. If
            null, uses those that the weights were trained with or, if these are not known, those of the data.

    Raises:
        ValueError: if ``name``, the name of the weights, ``in_channels``, ``stem`` or ``norm`` is unknown, the network
            has no such stem or takes no ``image_size``, or the weights do not fit.
        FileNotFoundError: if ``weights`` is a path and there is no such file.
        OSError: if weights of torchvision cannot be downloaded.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        stem: Literal["standard", "small"] = "standard",
        weights: str | None = None,
        image_size: int | None = None,
        norm: Norm = "batch",
        normalization: Literal["imagenet"] | None = None,
    ) -> None:
        if name not in (names := models.list_models(module=models)):
            raise ValueError(
                f"torchvision has no classification model {name!r}{nearest(name, names)}: give a name that "
                "torchvision.models.list_models(torchvision.models) lists"
            )
        weights = None if weights == NULL else weights
        if in_channels not in (1, 3):
            raise ValueError(f"in_channels is {in_channels}: it must be 1 or 3")
        if stem not in ("standard", "small"):
            raise ValueError(f"stem is {stem!r}: it must be 'standard' or 'small'")
        options: dict[str, Any] = _size_option(name, image_size)
        stated = None if normalization is None else named_normalization(normalization)
        known = list(dict.fromkeys(["DEFAULT", *models.get_model_weights(name).__members__]))
        if weights in known:
            if norm != "batch":
                raise ValueError(f"the weights {weights} were trained with batch norm: leave norm or weights out")
            options["weights"] = weights
        elif weights is not None and not _is_path(weights):
            raise ValueError(f"weights are {weights!r}: give a file, or for {name} one of {', '.join(known)}")
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = weights not in known  # torchvision warns if it is left out

        with downloading(
            f"weights {weights} of {name}", "give a file of them as weights (--model.encoder.weights FILE)"
        ):
            network = models.get_model(name, **options)
        use_norm(network, norm)
        if stem == "small":
            _make_small(network, name)
        if in_channels == 1:
            _sum_first_convolution(network)
        super().__init__(network, _remove_head(network), in_channels)
        if weights in known:
            self.pretrained = True
            self.normalization = _trained_with(name, str(weights))
        elif weights is not None:
            # a stem for small images has another first convolution than torchvision's
            optional = ["network.conv1.weight"] if stem == "small" else []
            load_weights(self, weights, optional, stated or _of_download(name, Path(weights)))
        if stated is not None:
            self.normalization = stated

    def no_weight_decay(self) -> set[str]:
        """Names of the embeddings, position biases and scales, which are no weights of a layer."""
        return {name for name, _ in self.named_parameters() if name.endswith(_NO_WEIGHT_DECAY)}


def source_head(name: str, weights: str | None) -> nn.Linear | None:
    """The layer that a ``TorchvisionEncoder`` leaves out: it makes the logits of the classes that it was trained on.

    Args:
        name: name in ``torchvision.models``.
        weights: as of ``TorchvisionEncoder``, which has checked both.

    Returns:
        The layer, which takes the features of the encoder; None where ``weights`` have none, or where it is not linear.
    """
    if weights is None:
        return None
    with torch.device("meta"):
        network: nn.Module = models.get_model(name)
    layers = [layer for layer, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        return None
    state: dict[str, torch.Tensor] = {}
    if weights in models.get_model_weights(name).__members__:
        state = {**models.get_model_weights(name)[weights].get_state_dict(check_hash=True)}
    else:
        _remove_head(network)
        with suppress(ValueError):  # of another stem, for example
            state = matched(network, weights).left
    weight, bias = (state.get(f"{layers[-1]}.{kind}") for kind in ("weight", "bias"))
    if weight is None or bias is None or weight.ndim != 2:
        return None
    check_finite({f"{layers[-1]}.weight": weight, f"{layers[-1]}.bias": bias}, weights)
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": bias})
    return head


def _is_path(weights: str) -> bool:
    path = Path(with_choice(weights)[0]).expanduser()
    return bool(path.suffix) or path.exists()


def _trained_with(name: str, weights: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    transform = models.get_model_weights(name)[weights].transforms()
    return tuple(transform.mean), tuple(transform.std)


def _of_download(name: str, file: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The normalisation of a file that torchvision offers for download, by its name, which has part of its hash."""
    for weights in models.get_model_weights(name):
        if Path(urlsplit(weights.url).path).name == file.name:
            return _trained_with(name, weights.name)
    return None


def _size_option(name: str, image_size: int | None) -> dict[str, Any]:
    if image_size is None:
        return {}
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    raise ValueError(f"image_size is {image_size}, but {name} takes images of any size: leave image_size out")


def _make_small(network: Any, name: str) -> None:
    if not isinstance(network, models.ResNet):
        raise ValueError(f"{name} has no small stem: use resnet*, resnext* or wide_resnet*, or stem 'standard'")
    network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's ResNet
    network.maxpool = nn.Identity()


def _sum_first_convolution(network: Any) -> None:
    conv = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    conv.in_channels = 1
    conv.weight = nn.Parameter(conv.weight.detach().sum(1, keepdim=True))
    if hasattr(network, "transform_input"):
        network.transform_input = False  # a change of normalisation, written for three channels


def _remove_head(network: Any) -> int:
    """Puts the identity in the place of the layer that makes the logits, the last one, and returns its input size."""
    for aux in ("aux1", "aux2", "AuxLogits"):  # GoogLeNet and Inception
        if hasattr(network, aux):
            setattr(network, aux, None)
            network.aux_logits = False
    layers = list(network.named_modules())
    linear = [name for name, module in layers if isinstance(module, nn.Linear)]
    convolution = [name for name, module in layers if isinstance(module, nn.Conv2d)]  # SqueezeNet's logits
    head = (linear or convolution)[-1]
    layer = network.get_submodule(head)
    names = [name for name, module in layers if not list(module.children())]
    before = names[names.index(head) - 1]
    network.set_submodule(head, nn.Identity())
    if isinstance(network.get_submodule(before), nn.Dropout):
        network.set_submodule(before, nn.Identity())
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
