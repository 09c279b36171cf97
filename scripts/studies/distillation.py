"""Distillation: small networks trained on the predictions and features of large ones."""

import json

from studies.base import LEAN, Study

_DISTILLED = ("test/accuracy", "test/calibration_error", "test/agreement", "epochs", "training_minutes")
_ALL_16 = "--data ImageFolder --data.root <root> --data.image_size 16 --data.cache true --data.batch_size 128"
_SOME_16 = (
    "--data Subset --data.base ImageFolder --data.base.root <root> --data.base.image_size 16 --data.base.cache true "
    "--data.per_class 2000 --data.batch_size 128"
)
_EIGHT_EPOCHS = "--trainer.max_epochs 8 --model.scheduler.warmup_epochs 1 --trainer.check_val_every_n_epoch 8"
_RESNET56 = "--config distill-cifar10 --model Supervised --model.encoder ResNet --model.encoder.depth 56"
_FEW = (
    "--data Subset --data.base ImageFolder --data.base.root <root> --data.base.image_size 16 --data.base.cache true "
    "--data.per_class 400 --data.batch_size 128 --trainer.max_epochs 30 --trainer.check_val_every_n_epoch 30"
)
_VIT = (
    "--model.encoder.image_size 16 --model.encoder.dim 64 --model.encoder.heads 2 --model.encoder.depth 4 "
    "--model.encoder.drop_path 0 "
    "--model.optimizer.lr 1e-3 --model.lr_batch_size 128"
)
_CONVOLUTIONAL = "--model.teacher '<run of convolutional teacher>'"
_LEFT_OUT = "--data.leave_out '[\"{}\"]'"
_CLOTHES = "--data Subset --data.base FashionMNIST --data.base.root <root> --data.per_class 1000"
_TAUGHT = "--model.teacher '<run of teacher>'"
_TO_RESNET8 = f"--config distill-cifar10 {_TAUGHT} --model.encoder.depth 8"
WITHOUT = "student, soft targets, no image of class 3"


def _entry(loss: str, weight: float, layer: str, **its: object) -> dict[str, object]:
    """A loss with its arguments, between a layer of the student and the same of the teacher."""
    return {"loss": {"class_path": loss, "init_args": its}, "weight": weight, "student_layer": layer}


def _attention() -> str:
    """Attention transfer after each of the three stages of residual blocks (Zagoruyko & Komodakis, 2017)."""
    entries = [_entry("losses.AttentionTransfer", 1000.0, f"stage:{stage}") for stage in (1, 2, 3)]
    return f"--model.layer_losses '{json.dumps(entries)}'"


def _contrastive() -> str:
    """CRD between the features (Tian et al., 2020), with a quarter of the published negatives, for speed."""
    entry = _entry("recipes.distillation.ContrastiveDistillation", 0.8, "feature", negatives=4096)
    return f"--model.layer_losses '{json.dumps([entry])}'"


def _hinton(data: str, images: str, third: str, without: str) -> dict[str, str]:
    """Hinton's experiment.

    Args:
        data: in the names of the configs.
        images: options that choose the images.
        third: name of class 3.
        without: options that choose the images where those of class 3 are left out.
    """
    student = f"--config distill-{data} {_TAUGHT}"
    return {
        "teacher": f"--config teacher-{data} {images}".strip(),
        "student, hard labels": f"{student} {images} --model.soft_weight 0".replace("  ", " "),
        "student, soft targets": f"{student} {images}".strip(),
        WITHOUT: f"{student} {without.format(third)} --data.batch_size 128",
    }


def _sweep(size: str) -> dict[str, str]:
    """A student of some size at several temperatures, on images without augmentation, with cached logits."""
    width, parameters = size.split(", ", 1)
    student = (
        f"{_TO_RESNET8} --model.encoder.width {width} --model.teacher_logits cached --model.views null {_SOME_16} "
        f"{_EIGHT_EPOCHS} {LEAN}"
    )
    return {
        f"{parameters}, hard labels": f"{student} --model.soft_weight 0",
        **{f"{parameters}, T = {t}": f"{student} --model.temperature {t}" for t in (1, 4, 20)},
    }


STUDIES = {
    "hinton-digits": Study(
        about="Hinton's experiment on the digits: nets of 1200-1200 and 800-800 units, T = 20",
        variants=_hinton("digits", "", "3", f"--data Subset --data.base Digits --data.base.size 16 {_LEFT_OUT}"),
        common=LEAN,
        columns=_DISTILLED,
        kept=(WITHOUT,),
    ),
    "hinton-fashionmnist": Study(
        about="Hinton's experiment on 10,000 images of Fashion-MNIST: nets of 1200-1200 and 800-800 units, T = 20",
        variants=_hinton("fashionmnist", f"{_CLOTHES} --data.batch_size 128", "Dress", f"{_CLOTHES} {_LEFT_OUT}"),
        common=LEAN,
        columns=_DISTILLED,
        kept=(WITHOUT,),
        root="data",
    ),
    "distillation": Study(
        about="From ResNet-56 to ResNet-8 on CIFAR-10 (JPEG) at 16 × 16 pixels, 8 epochs",
        variants={
            "teacher": _RESNET56,
            "hard labels": f"{_TO_RESNET8} --model.soft_weight 0",
            "soft targets (KD)": _TO_RESNET8,
            "attention transfer": f"{_TO_RESNET8} --model.soft_weight 0 {_attention()}",
            "contrastive (CRD)": f"{_TO_RESNET8} --model.soft_weight 0 {_contrastive()}",
        },
        common=f"{_ALL_16} {_EIGHT_EPOCHS} {LEAN}",
        columns=_DISTILLED,
        root="data/cifar10-jpeg",
    ),
    "temperature": Study(
        about="Temperatures for students of two sizes, from the same ResNet-56: 20,000 of its images, without "
        "augmentation, and cached logits",
        variants={
            "teacher": f"{_RESNET56} {_ALL_16} {_EIGHT_EPOCHS} {LEAN}",
            **_sweep("16, 75,000 parameters"),
            **_sweep("4, 5,000 parameters"),
        },
        columns=_DISTILLED,
        root="data/cifar10-jpeg",
    ),
    "deit": Study(
        about="A small vision transformer on 4,000 images of CIFAR-10 (JPEG) at 16 × 16 pixels, 30 epochs, with and "
        "without a convolutional teacher that was trained on the same images",
        variants={
            "convolutional teacher": f"--config distill-cifar10 --model Supervised {_FEW}",
            "ViT, labels alone": f"--config deit-cifar10 --model.teacher null --model.encoder.pool token {_VIT} {_FEW}",
            "ViT, hard distillation": f"--config deit-cifar10 {_CONVOLUTIONAL} {_VIT} {_FEW}",
            "ViT, soft distillation": f"--config deit-cifar10 {_CONVOLUTIONAL} --model.distillation soft {_VIT} {_FEW}",
        },
        common=LEAN,
        columns=_DISTILLED,
        root="data/cifar10-jpeg",
    ),
}
