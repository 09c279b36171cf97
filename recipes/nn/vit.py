from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.nn.encoder import Encoder, check_image
from recipes.nn.weights import load_weights


class ViT(Encoder):
    """A small vision transformer (Dosovitskiy et al., 2021, arXiv:2010.11929): pre-norm, learned position embeddings.

    Args:
        image_size: H and W of the images.
        patch_size: side of a patch; divides ``image_size``.
        dim: width of the tokens, and the number of features; a multiple of ``heads``.
        depth: number of transformer blocks.
        heads: number of attention heads.
        in_channels: C, 1 or 3.
        mlp_ratio: width of the hidden layer of a block over ``dim`` (Table 1: 4).
        pool: features are the class ``token`` (Equation 4) or the ``mean`` of the patches, without a class token
            (Appendix D.3).
        weights: file to load the weights from: a state_dict or the checkpoint of a recipe. None starts at random.

    Raises:
        ValueError: if ``patch_size`` does not divide ``image_size``, ``heads`` does not divide ``dim``,
            a size is not positive, or ``pool`` is unknown.
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
        pool: Literal["token", "mean"] = "token",
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
        if pool not in ("token", "mean"):
            raise ValueError(f"pool is {pool!r}: it must be 'token' or 'mean'")
        network = _VisionTransformer(
            image_size, patch_size, dim, depth, heads, in_channels, round(mlp_ratio * dim), pool == "token"
        )
        super().__init__(network, dim, in_channels)
        self.image_size = image_size
        if weights is not None:
            load_weights(self, weights)

    def forward(self, image: Tensor) -> Tensor:
        """Maps normalised float images [B, C, H, W] to features [B, F]."""
        check_image(self, image, self.image_size)
        return self.network(image)


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
        class_token: bool,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.position = nn.Parameter(torch.zeros(1, (image_size // patch_size) ** 2 + class_token, dim))
        self.blocks = nn.Sequential(*[_Block(dim, heads, hidden) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        for module in self.modules():  # as in the authors' code for the embeddings, and BERT for the layers
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.position, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """The embeddings, which weight decay would only pull to zero (Touvron et al., 2021, arXiv:2012.12877, code)."""
        return {"class_token", "position"}

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)  # [B, N, D]
        if self.class_token is not None:
            first = self.class_token.expand(tokens.shape[0], -1, -1)  # torch.export would take len() for a constant
            tokens = torch.cat([first, tokens], 1)  # [B, 1 + N, D]
        tokens = self.norm(self.blocks(tokens + self.position))
        return tokens.mean(1) if self.class_token is None else tokens[:, 0]


class _Block(nn.Module):
    """Attention and MLP, each after a layer norm and with a shortcut (Equations 2 and 3)."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, N, D/H]
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [B, N, D]
        x = x + self.project(attended)
        return x + self.mlp(self.norm2(x))
