from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from recipes.errors import nearest
from recipes.nn.encoders.base import Encoder, check_image
from recipes.nn.encoders.weights import load_weights

Pool = Literal["token", "tokens", "mean"]


class ViT(Encoder):
    """A small vision transformer (Dosovitskiy et al., 2021, arXiv:2010.11929): pre-norm, learned position embeddings.

    Args:
        image_size: height and width of the images in pixels.
        patch_size: side of a patch; divides ``image_size``.
        dim: width of the tokens, and the number of features (half, with ``tokens``); a multiple of ``heads``.
        depth: number of transformer blocks.
        heads: number of attention heads.
        in_channels: number of channels C of the images, 1 or 3.
        mlp_ratio: width of the hidden layer of a block over ``dim`` (Table 1: 4).
        pool: features are the class ``token`` (Equation 4); or the ``mean`` of the patches, without a token (Appendix
            D.3); or ``tokens``, the class token and after it a distillation token, side by side (Touvron et al., 2021,
            arXiv:2012.12877, Section 4).
        drop_path: share of images for which the last block is left out in training, in [0, 1): attention and MLP each
            by themselves, and earlier blocks less, down to 0 for the first (stochastic depth: Huang et al., 2016,
            arXiv:1603.09382; 0.1 for DeiT). As with dropout, its random numbers are those of the device: a run with
            it depends on the number of devices, and a resumed one is not the same bit for bit.
        weights: file of pretrained weights, or a run directory (``load_weights``). If null, weights are random.

    Raises:
        ValueError: if ``patch_size`` does not divide ``image_size``, ``heads`` does not divide ``dim``,
            a size is not positive, ``drop_path`` is out of its range, or ``pool`` is unknown.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int = 4,
        dim: int = 192,
        depth: int = 6,
        heads: int = 3,
        in_channels: int = 3,
        mlp_ratio: float = 4.0,
        pool: Pool = "token",
        drop_path: float = 0.0,
        weights: str | None = None,
    ) -> None:
        sizes = {"image_size": image_size, "patch_size": patch_size, "dim": dim, "depth": depth, "heads": heads}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}: it must be positive")
        if image_size % patch_size:
            raise ValueError(f"patch_size {patch_size} does not divide image_size {image_size}")
        if dim % heads:
            raise ValueError(f"heads {heads} does not divide dim {dim}")
        if pool not in ("token", "tokens", "mean"):
            raise ValueError(f"pool is {pool!r}: it must be 'token', 'tokens' or 'mean'")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is {drop_path}: it must be at least 0 (leaves no block out) and below 1")
        hidden = round(mlp_ratio * dim)
        network = _VisionTransformer(image_size, patch_size, dim, depth, heads, in_channels, hidden, pool, drop_path)
        super().__init__(network, 2 * dim if pool == "tokens" else dim, in_channels)
        self.image_size = image_size
        self.pool = pool
        if weights is not None:
            load_weights(self, weights)

    def forward(self, image: Tensor) -> Tensor:
        """Maps normalised float images [B, C, H, W] to features [B, F]."""
        check_image(self, image, self.image_size)
        return self.network(image)


_DIMS = {"deit_tiny": 192, "deit_small": 384, "deit_base": 768}  # Touvron et al., Table 1; heads of 64 each, 12 blocks


class DistilledViT(ViT):
    """The vision transformers of DeiT by name (Touvron et al., 2021, arXiv:2012.12877, Table 1).

    With one token and a linear layer for 1000 classes they have 5.7, 22 and 87 million parameters.

    Args:
        name: ``deit_tiny``, ``deit_small`` or ``deit_base``: DeiT-Ti, DeiT-S or DeiT-B.
        image_size: height and width of the images in pixels.
        patch_size: side of a patch; divides ``image_size``.
        in_channels: number of channels C of the images, 1 or 3.
        pool: features, as for ``ViT``: ``tokens`` for training with a teacher, ``token`` without.
        drop_path: as for ``ViT``; with 0, runs resume bit for bit.
        weights: file of pretrained weights, or a run directory (``load_weights``). If null, weights are random.

    Raises:
        ValueError: if there is no such network, or as of ``ViT``.
    """

    def __init__(
        self,
        name: str = "deit_tiny",
        image_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        pool: Pool = "tokens",
        drop_path: float = 0.1,  # Table 9
        weights: str | None = None,
    ) -> None:
        if name not in _DIMS:
            raise ValueError(f"name is {name!r}{nearest(name, _DIMS)}: it must be one of {', '.join(_DIMS)}")
        dim = _DIMS[name]
        super().__init__(
            image_size,
            patch_size,
            dim,
            depth=12,
            heads=dim // 64,
            in_channels=in_channels,
            pool=pool,
            drop_path=drop_path,
            weights=weights,
        )


class _VisionTransformer(nn.Module):
    def __init__(
        self,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        heads: int,
        in_channels: int,
        hidden: int,
        pool: Pool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if pool != "mean" else None
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, dim)) if pool == "tokens" else None
        self.tokens = {"mean": 0, "token": 1, "tokens": 2}[pool]
        self.position = nn.Parameter(torch.zeros(1, self.tokens + (image_size // patch_size) ** 2, dim))
        rates = [drop_path * number / max(1, depth - 1) for number in range(depth)]  # rises linearly with the depth
        self.blocks = nn.Sequential(*[_Block(dim, heads, hidden, rate) for rate in rates])
        self.norm = nn.LayerNorm(dim)
        for module in self.modules():  # as in the authors' code for the embeddings, and BERT for the layers
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.position, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """The embeddings, which weight decay would only pull to zero (Touvron et al., 2021, arXiv:2012.12877, code)."""
        return {"class_token", "distillation_token", "position"}

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)  # [B, N, D]
        first = [token for token in (self.class_token, self.distillation_token) if token is not None]
        # torch.export would take len() for a constant
        tokens = torch.cat([*(token.expand(tokens.shape[0], -1, -1) for token in first), tokens], 1)  # [B, T + N, D]
        tokens = self.norm(self.blocks(tokens + self.position))
        return tokens[:, : self.tokens].flatten(1) if self.tokens else tokens.mean(1)


class _Block(nn.Module):
    """Attention and MLP, each after a layer norm and with a shortcut (Equations 2 and 3)."""

    def __init__(self, dim: int, heads: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path else nn.Identity()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, N, D/H]
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [B, N, D]
        x = x + self.drop_path(self.project(attended))
        return x + self.drop_path(self.mlp(self.norm2(x)))
