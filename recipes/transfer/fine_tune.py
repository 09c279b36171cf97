from collections import defaultdict
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from datamodules import Batch, ImageDataModule
from losses.labelled import balanced_class_weight, mixed_cross_entropy
from recipes.augment import Mix, SupervisedViews, Views, partners
from recipes.base.classifier import Classifier
from recipes.nn import Encoder, FrozenStages
from recipes.nn.frozen_stages import drop_gradients
from recipes.optim import WarmupCosine
from recipes.transfer.frozen import cache_features, warn_of_random_weights
from recipes.transfer.l2_sp import StartingPoint, check_l2_sp
from recipes.transfer.modes import lr_factors, modes, waiting_stages, with_new_stages


class FineTune(Classifier):
    """Transfer learning: fine-tunes a pretrained encoder, stage by stage.

    Each stage (``recipes.nn.stages``) has a mode:

    - ``frozen``: weights, running statistics and dropout do not change; the stage gets no gradient and is not in the
      optimiser;
    - ``finetune``: trained with ``finetune_factor`` times the learning rate of the new parts;
    - ``retrain``: reinitialised with random weights, and trained like the new parts.

    ``stages`` lists one mode for each stage, or names a strategy:

    ======================  ============================================================================================
    ``feature-extraction``  all frozen; the features are computed once if there are no ``views``
    ``fine-tune-last``      the last stage fine-tuned, the others frozen
    ``fine-tune-all``       all fine-tuned
    ``from-scratch``        all reinitialised and retrained
    ``gradual-unfreezing``  only the head at first; every ``unfreeze_every_n_epochs`` epochs one more stage, from the
                            last to the first (Howard & Ruder, 2018, arXiv:1801.06146, Section 3.3)
    ``layer-decay``         all fine-tuned, each stage with ``layer_decay`` times the learning rate of the next stage,
                            as for vision transformers (Bao et al., 2022, arXiv:2106.08254; He et al., 2022)
    ======================  ============================================================================================

    Images without a label (-1) are skipped in the loss.

    Args:
        encoder: network that maps images [B, C, H, W] to features [B, F]. Its argument ``weights`` names its pretrained
            weights.
        stages: a word of the table, or one of frozen, finetune and retrain for each stage, from the first to the last,
            separated by blanks. ``frozen*3`` stands for three stages and ``frozen...`` for all remaining ones:
            ``"frozen*2 finetune retrain"``, ``"frozen... finetune"``.
        finetune_factor: learning rate of fine-tuned stages divided by that of the new parts, in (0, 1].
        layer_decay: learning rate of a stage divided by that of the next stage, in (0, 1]. Used only by
            ``layer-decay``.
        unfreeze_every_n_epochs: number of epochs after which the next stage is unfrozen, > 0. Used only by
            ``gradual-unfreezing``.
        l2_sp: strength α of the penalty α/2 ||w - w⁰||² on the distance of fine-tuned weights w from their pretrained
            values w⁰, >= 0. It replaces their weight decay (L2-SP: Li et al., 2018, arXiv:1802.01483). With 0, there is
            no penalty.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).
        mixup: α of mixup, >= 0 (see ``recipes.augment.Mix``). With 0, images are not mixed.
        cutmix: α of CutMix, >= 0. With 0, no box is pasted.
        class_weights: weights of the classes in the loss: ``balanced`` weighs the images of a class by (images) /
            (classes × images of the class), for data with large and small classes. If null, all images weigh the same.
        views: augmentation that draws one random view of every image. If null, uses random crops and flips
            (``SupervisedViews``); if all stages are frozen, uses the images as they are and computes their features
            only once.
        optimizer: optimiser of the trainable parameters. Norm layers and biases get no weight decay. Its learning rate
            is that of the new parts.
        Other arguments: see ``Classifier``.

    Raises:
        ValueError: if an argument is out of its range, or ``stages`` does not fit the encoder; at the start of
            training, if there are fewer labelled images than classes.
    """

    class_weight: Tensor

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        stages: str = "fine-tune-all",
        finetune_factor: float = 0.1,
        layer_decay: float = 0.75,  # He et al., 2022, arXiv:2111.06377, Table 9
        unfreeze_every_n_epochs: int = 1,  # Howard & Ruder, Section 3.3
        l2_sp: float = 0.0,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        class_weights: Literal["balanced"] | None = None,
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True
        ),  # that of Supervised for the new parts; a tenth, 0.01, for the others
        scheduler: LRSchedulerCallable | None = lambda o: WarmupCosine(o, warmup_epochs=1),
        lr_batch_size: int | None = 256,
    ) -> None:
        for name, factor in (("finetune_factor", finetune_factor), ("layer_decay", layer_decay)):
            if not 0 < factor <= 1:
                raise ValueError(f"{name} is {factor}: it must be above 0 and at most 1")
        if unfreeze_every_n_epochs < 1:
            raise ValueError(f"unfreeze_every_n_epochs is {unfreeze_every_n_epochs}: it must be at least 1")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}: it must be in [0, 1)")
        if class_weights not in (None, "balanced"):
            raise ValueError(f"class_weights is {class_weights!r}: it must be 'balanced' or null")
        chosen = modes(stages, encoder)
        if check_l2_sp(l2_sp) and "finetune" not in chosen:
            raise ValueError(f"l2_sp is for fine-tuned stages, but stages is {stages!r}: leave l2_sp out")
        super().__init__(with_new_stages(encoder, chosen), num_classes, optimizer, scheduler, lr_batch_size)
        self.modes = chosen
        self.frozen = FrozenStages(self.encoder)
        self.all_frozen = set(chosen) == {"frozen"}
        self.mix = Mix(mixup, cutmix) if mixup or cutmix else None
        if self.all_frozen and views is None and self.mix:
            raise ValueError(
                "mixup and cutmix mix images, but all stages are frozen and the features of images are computed once: "
                "give views, or leave mixup and cutmix out"
            )
        self.views = views or (None if self.all_frozen else SupervisedViews())
        self.finetune_factor = finetune_factor
        self.layer_decay = layer_decay if stages == "layer-decay" else None
        self.unfreeze_every_n_epochs = unfreeze_every_n_epochs if stages == "gradual-unfreezing" else None
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.register_buffer("class_weight", torch.ones(num_classes))
        self.l2_sp = l2_sp
        self.start = StartingPoint(self._fine_tuned()) if l2_sp else None

    def setup(self, stage: str) -> None:
        """Takes the weights of the classes from the training images too, and checks that there are enough of these."""
        super().setup(stage)
        if stage != "fit":
            return
        for parameter in self.frozen.parameters([*self._numbers("finetune"), *self._numbers("retrain")]):
            parameter.requires_grad_()  # also of an encoder that was frozen where it comes from
        if set(self.modes) != {"retrain"}:
            warn_of_random_weights(self.encoder)
        data = self.datamodule
        if isinstance(data, ImageDataModule) and self.class_weights:
            self.class_weight.copy_(balanced_class_weight(data.splits.train.label, len(self.class_weight)))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds the optimiser and its schedule; where all is frozen and nothing random, computes the features."""
        if self.all_frozen and self.views is None:
            cache_features(self)
        return super().configure_optimizers()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All trainable parameters, sorted by weight decay and by how fast they learn."""
        of_stages = enumerate(lr_factors(self.modes, self.finetune_factor, self.layer_decay))
        factors = {parameter: factor for number, factor in of_stages for parameter in self.frozen.parameters([number])}
        tied = set(self._fine_tuned()) if self.l2_sp else set()
        groups = []
        for group in super().parameter_groups():
            alike = defaultdict(list)
            for parameter in group["params"]:
                alike[factors.get(parameter, 1.0), parameter in tied].append(parameter)
            for (factor, is_tied), members in alike.items():
                decay = {"weight_decay": 0.0} if is_tied else {}
                groups.append({**group, **decay, "params": members, "lr_factor": factor})
        return groups

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy, the mean over the labelled images of all devices, and the penalty of L2-SP."""
        share = None
        if self.views is None:
            feature = self.feature(batch)
        else:
            image = self.view(batch, batch_idx)
            if self.mix:
                image, share = self.mix(image, self.key(batch, view=1).fold_in(batch_idx))
            feature = self(image)
        loss = mixed_cross_entropy(
            self.logits(feature),
            batch.label,
            partners(batch.label),
            share,
            self.gather(batch.label),
            self.label_smoothing,
            self.class_weight if self.class_weights else None,
        )
        if self.start is not None:
            distance = self.start.squared_distance(self._fine_tuned())
            loss = loss + self.l2_sp / 2 * distance
            self.log("train/l2_sp", distance)
        self.log("train/loss", loss)
        return loss

    # Which layers learn

    def frozen_parameters(self) -> list[nn.Parameter]:
        """The parameters of the stages that are frozen for the whole run."""
        return self.frozen.parameters(self._numbers("frozen"))

    def train(self, mode: bool = True) -> "FineTune":
        """Puts into training mode what is trained at this epoch, and all else into eval mode."""
        super().train(mode)
        self.frozen.evaluate({*self._numbers("frozen"), *self._waiting()})
        return self

    def on_train_start(self) -> None:
        """Goes on with the stages of this epoch, also within one."""
        self.train()

    def on_train_epoch_start(self) -> None:
        """Lets the next stage learn, where there is gradual unfreezing."""
        self.train()

    def on_after_backward(self) -> None:
        """Drops the gradients of stages that have to wait: no step moves them, and no optimiser knows of them yet.

        They are computed so that DDP, which wants the same gradients at every step, works as it is.
        """
        drop_gradients(self.frozen.parameters(self._waiting()))

    def _waiting(self) -> range:
        """The stages whose turn has not come."""
        return waiting_stages(len(self.modes), self.current_epoch, self.unfreeze_every_n_epochs)

    def _fine_tuned(self) -> list[nn.Parameter]:
        return self.frozen.parameters(self._numbers("finetune"))

    def _numbers(self, mode: str) -> list[int]:
        return [number for number, found in enumerate(self.modes) if found == mode]
