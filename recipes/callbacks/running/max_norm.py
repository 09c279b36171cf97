import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn


class MaxNorm(Callback):
    """Limits the norm of the incoming weights of every hidden unit of the encoder, after each step.

    A longer weight vector is scaled back to the largest norm (Hinton et al., 2012, arXiv:1207.0580). The limit is meant
    for dropout and large learning rates. It applies to linear layers and convolutions of the encoder, without biases;
    the head of a classifier is not limited.

    Args:
        largest: largest norm of the incoming weights of a unit, > 0.

    Raises:
        ValueError: if ``largest`` is not positive.
    """

    def __init__(self, largest: float = 3.5) -> None:  # Srivastava et al., 2014, JMLR 15: typical values are 3 to 4
        if not largest > 0:
            raise ValueError(f"largest is {largest}: it must be a positive norm")
        self.largest = largest

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Scales back the weights that have grown too long."""
        for module in pl_module.encoder.modules():  # type: ignore[union-attr]
            if isinstance(module, nn.Linear | nn.Conv2d):
                norm = module.weight.flatten(1).norm(dim=1)
                scale = (self.largest / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1)
                module.weight.mul_(scale.view(-1, *[1] * (module.weight.ndim - 1)))
