from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from datamodules import Batch
from losses import NCE, InfoNCE, unit
from recipes.augment import InstanceDiscriminationViews, Views, integers
from recipes.base.recipe import Recipe
from recipes.errors import check_at_least
from recipes.nn import Encoder, MemoryBank, check_momentum


class InstanceDiscrimination(Recipe):
    """Contrastive learning of one view against a memory bank of all images (Wu et al., 2018, arXiv:1805.01978).

    Every image is a class of its own. A memory bank holds the last feature of each, and a view of an image has to find
    it among those of all images. With ``negatives`` the softmax over all of them is replaced by noise-contrastive
    estimation (Section 3.2), and features are held back to that of the last epoch (Section 3.3).

    Args:
        encoder: network that maps images [B, C, H, W] to features [B, F], which are taken before the projection.
        num_images: number of training images. If null, uses that of the DataModule when training starts.
        projection_dim: width of the vectors in the memory bank, > 0.
        negatives: number m of images that are drawn as noise for each batch, >= 1. The published code draws m images
            for each image of the batch, which has the same expectation. If null, uses the exact softmax over all
            images.
        proximal_weight: weight λ of the squared distance to the image's last feature, >= 0. Used only with
            ``negatives``.
        bank_momentum: share of the last feature that is kept in the bank, in [0, 1].
        temperature: softmax temperature τ for the similarities, > 0.
        views: augmentation that draws one random view of every image. If null, uses that of the paper
            (``InstanceDiscriminationViews``).
        Other arguments: see ``Recipe``.

    Raises:
        ValueError: if a number is out of its range; when a run starts, if ``num_images`` is not that of the data.
    """

    log_z: Tensor

    remembers_images = True

    def __init__(
        self,
        encoder: Encoder,
        num_images: int | None = None,
        projection_dim: int = 128,  # Section 4.2, Table 4
        negatives: int | None = 4096,  # Section 4.2
        proximal_weight: float = 1.0,  # the paper names no λ, and its published code has no such term
        bank_momentum: float = 0.5,  # published code, --nce-m; the paper replaces the feature
        temperature: float = 0.07,  # Section 4.2
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.03, momentum=0.9, weight_decay=1e-4
        ),  # Section 4.2; momentum and weight decay: published code
        scheduler: LRSchedulerCallable | None = None,  # Section 4.2: as in instance-discrimination-imagenet
        lr_batch_size: int | None = 256,
    ) -> None:
        super().__init__(encoder, optimizer, scheduler, lr_batch_size)
        check_at_least(1, num_images=num_images, projection_dim=projection_dim)
        check_at_least(0, proximal_weight=proximal_weight)
        check_momentum(bank_momentum, "bank_momentum")
        if negatives is not None and negatives < 1:
            raise ValueError(
                f"negatives is {negatives}: it must be at least 1, or null for the softmax over all images"
            )
        self.negatives = negatives
        self.proximal_weight = proximal_weight
        self.views: Views = views or InstanceDiscriminationViews()
        self.projector = nn.Linear(self.feature_dim, projection_dim)
        self.bank = MemoryBank(num_images or 0, projection_dim, bank_momentum)
        self.softmax = InfoNCE(temperature)
        self.nce = NCE(temperature)
        self.register_buffer("log_z", torch.tensor(-torch.inf))  # log Z, from the first batch on
        self.needs_log_z = False

    def setup(self, stage: str) -> None:
        """Gives the bank a row for each training image."""
        super().setup(stage)
        if stage != "fit":
            return
        data = self.datamodule
        if data is not None and hasattr(data, "splits"):
            self.size_bank(len(data.splits.train))
        elif not len(self.bank):
            raise ValueError("num_images is required without a DataModule: pass the number of training images")

    def size_bank(self, num_images: int) -> None:
        """Creates the bank for the given number of images, or checks the size of an existing bank."""
        if not len(self.bank):
            self.bank.allocate(num_images)
        elif len(self.bank) != num_images:
            raise ValueError(
                f"the memory bank is of {len(self.bank)} images, but there are {num_images} to train on: leave "
                "num_images out, and go on with a run only on its own data"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes the bank for as many images as the checkpoint has."""
        if "bank.features" in checkpoint["state_dict"]:
            self.size_bank(len(checkpoint["state_dict"]["bank.features"]))
        if checkpoint["state_dict"].get("log_z", self.log_z).isnan():  # an earlier version's mark of none
            checkpoint["state_dict"]["log_z"] = torch.full_like(self.log_z, -torch.inf)
        super().on_load_checkpoint(checkpoint)

    def on_train_start(self) -> None:
        """Sees whether the normalisation constant is known: a run may have begun without sampled negatives."""
        self.needs_log_z = bool(self.log_z.isneginf())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Finds every image in the bank by one view of it."""
        z = self.projector(self(self.views(batch.image, self.key(batch))))  # [B, D]
        last = self.bank.features[batch.index]
        if self.negatives is None:
            loss = self.softmax(z, last, self.bank.features, exclude=batch.index)  # Equation 2
        else:
            noise = self.bank.features[self.draw(batch, self.negatives)]  # [m, D]
            if self.needs_log_z:
                self.needs_log_z = False
                self.log_z.copy_(self.nce.log_z(self.gather(z), noise, len(self.bank)))  # kept from then on
            loss = self.nce(z, last, noise, len(self.bank), self.log_z)
            loss = loss + self.proximal_weight * (unit(z) - last).square().sum(1).mean()  # Section 3.3
        self.seen = self.gather(batch.index), self.gather(z.detach())
        self.log("train/loss", loss)
        return loss

    def on_after_backward(self) -> None:
        """Moves the rows of the images seen, now that the bank has served the loss."""
        self.bank.update(*self.seen)

    def draw(self, batch: Batch, count: int) -> Tensor:
        """Draws so many images out of all, each as likely as any other and perhaps twice; the same on every device."""
        return integers(self.key(batch._replace(index=self.gather(batch.index)), view=1), count, len(self.bank))
