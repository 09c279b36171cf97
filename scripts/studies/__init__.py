"""What is compared with what: a study is data. ``scripts/reproduce <study>`` measures it, and tables.py shows it."""

import json
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Study:
    """Runs of ``recipes fit`` that are compared, each for several seeds.

    Attributes:
        about: what is compared, on what and under which conditions; the line above the table.
        variants: by name, the arguments of each; ``<root>`` stands for the folder of the data, and ``<run of NAME>``
            for the run of another variant with the same seed, which is made first and kept.
        common: arguments that all have after their own.
        columns: what the table shows, of the COLUMNS of tables.py.
        root: where the data is by default, from the top of the checkout; None for data that needs no folder.
        kept: variants whose runs are kept for a measurement of another command.
        groups: where every variant is named ``<row>: <group>``, the groups, each of which has columns of its own.
        of_groups: what the table shows of each group; ``columns`` are then taken from the first that a row has.
    """

    about: str
    variants: dict[str, str]
    common: str = ""
    columns: tuple[str, ...] = ("knn", "linear", "training_minutes")
    root: str | None = None
    kept: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    of_groups: tuple[str, ...] = ()

    def arguments(self, variant: str) -> str:
        """Those of ``recipes fit``, as they are typed."""
        return f"{self.variants[variant]} {self.common}".strip()

    def needs(self, variant: str) -> list[str]:
        """The other variants whose runs a variant starts from."""
        return re.findall("<run of (.+?)>", self.variants[variant])


_LEAN = "--probe.references false --probe.labels_per_class []"  # measures the trained encoder, with all labels
_SHORT = f"--trainer.max_epochs 50 --trainer.check_val_every_n_epoch 50 {_LEAN}"
_DISTILLED = ("test/accuracy", "test/calibration_error", "test/agreement", "epochs", "training_minutes")
_CIFAR10 = f"--data.root <root> {_LEAN}"
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


WITHOUT = "student, soft targets, no image of class 3"


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
        f"{_EIGHT_EPOCHS} {_LEAN}"
    )
    return {
        f"{parameters}, hard labels": f"{student} --model.soft_weight 0",
        **{f"{parameters}, T = {t}": f"{student} --model.temperature {t}" for t in (1, 4, 20)},
    }


_SCENARIOS = ("task", "domain", "class")
_LEARNERS = {
    "fine-tuning": "finetuning",
    "feature extraction": "feature-extraction",
    "EWC": "ewc",
    "online EWC": "ewc --model.online true",
    "SI": "si",
    "LwF": "lwf",
    **{f"rehearsal, {size:,}": f"rehearsal --model.buffer_size {size}" for size in (200, 500, 2000)},
    "DER++, 500": "derpp",
    "iCaRL, 500": "icarl",
    "joint": "joint",
}


def _sequences(options: str = "") -> dict[str, str]:
    """Every learner in every scenario that it is for, on the five tasks of Fashion-MNIST."""
    variants = {}
    for name, learner in _LEARNERS.items():
        method, _, own = learner.partition(" ")
        for scenario in _SCENARIOS:
            if (name, scenario) != ("iCaRL, 500", "domain"):
                config = f"--config {method}-split-fashionmnist --data.base.root <root> --data.scenario {scenario}"
                variants[f"{name}: {scenario}"] = " ".join(f"{config} {own} {options}".split())
    return variants


def _two_tasks(config: str, warmup_epochs: int, images: str) -> dict[str, str]:
    """What Li & Hoiem (2016) compare, where a second task follows a first."""
    config = f"--config {config} {images}"
    warm, cold = f"--model.warmup_epochs {warmup_epochs}", "--model.warmup_epochs 0"
    return {
        "feature extraction": f"{config} --model FeatureExtraction",
        "joint": f"{config} --model Joint {warm}",
        "LwF": f"{config} {warm}",
        "LwF, no warm-up": f"{config} {cold}",
        "fine-tuning": f"{config} --model FineTuning {warm}",
        "fine-tuning, no warm-up": f"{config} --model FineTuning {cold}",
    }


STUDIES = {
    "side-by-side": Study(
        about="About equal minutes of training on 10,000 images of CIFAR-10 (JPEG) at 16 × 16 pixels with ResNet-20",
        variants={
            "SimCLR": "--config simclr-cifar10-mini",
            "BYOL": "--config byol-cifar10-mini",
            "MoCo v2": "--config moco-v2-cifar10-mini",
            "instance discrimination": "--config instance-discrimination-cifar10-mini",
            "random encoder": "--config simclr-cifar10-mini --trainer.max_epochs 0",
        },
        common=_CIFAR10,
        columns=("knn", "linear", "epochs", "training_minutes"),
        root="data/cifar10-jpeg",
    ),
    "byol-ablations": Study(
        about="What keeps BYOL from collapse: 50 epochs of the digits",
        variants={
            "BYOL": "--config byol-digits",
            "no predictor": "--config byol-digits --model.predictor false",
            "τ = 0": "--config byol-digits --model.momentum 0 --model.constant_momentum true",
            "τ = 1": "--config byol-digits --model.momentum 1",
            "no stop-gradient": "--config byol-digits --model.target false",
            "with negatives": "--config byol-digits --model.negatives_weight 1",
        },
        common=_SHORT,
        columns=("knn", "linear", "val/effective_rank", "val/feature_std", "train/projection_std"),
    ),
    "batch-size": Study(
        about="Batches of 256 and of 32 digits, 50 epochs",
        variants={
            "BYOL, 256": "--config byol-digits",
            "BYOL, 32": "--config byol-digits --data.batch_size 32",
            "SimCLR, 256": "--config simclr-digits",
            "SimCLR, 32": "--config simclr-digits --data.batch_size 32",
        },
        common=_SHORT,
        columns=("knn", "linear", "epochs", "steps"),
    ),
    "colour-jitter": Study(
        about="With and without random colour (jitter and grey): images and networks as in the comparison side by side",
        variants={
            "BYOL": "--config byol-cifar10-mini",
            "BYOL, no colour": "--config byol-cifar10-mini --model.views.strength 0 --model.views.grey 0",
            "SimCLR": "--config simclr-cifar10-mini",
            "SimCLR, no colour": "--config simclr-cifar10-mini --model.views.strength 0 --model.views.grey 0",
        },
        common=_CIFAR10,
        columns=("knn", "linear", "epochs"),
        root="data/cifar10-jpeg",
    ),
    "queue": Study(
        about="A queue of 4,096 keys against the negatives of the batch, batches of 64: images and networks as in the "
        "comparison side by side",
        variants={
            "MoCo v2, queue": "--config moco-v2-cifar10-mini --data.batch_size 64 --trainer.max_epochs 10",
            "SimCLR": "--config simclr-cifar10-mini --data.batch_size 64 --trainer.max_epochs 8",
        },
        common=_CIFAR10,
        columns=("knn", "linear", "epochs", "training_minutes"),
        root="data/cifar10-jpeg",
    ),
    "mean-teacher": Study(
        about="Mean Teacher against its labels alone: 10 labelled digits per class",
        variants={
            "Mean Teacher": "--config mean-teacher-digits",
            "without consistency": "--config mean-teacher-digits --model.consistency_weight 0",
            # as many steps, with as many labelled images in each
            "supervised": "--config supervised-digits --data SemiSupervised --data.base Digits --data.base.size 16 "
            "--data.labels_per_class 10 --data.labelled_per_batch 32 --data.batch_size 32 --trainer.max_epochs 240 "
            "--trainer.check_val_every_n_epoch 240 --probe.k 10",
        },
        common=_LEAN,
        columns=("test/accuracy", "test/student_accuracy", "steps"),
    ),
    "hinton-digits": Study(
        about="Hinton's experiment on the digits: nets of 1200-1200 and 800-800 units, T = 20",
        variants=_hinton("digits", "", "3", f"--data Subset --data.base Digits --data.base.size 16 {_LEFT_OUT}"),
        common=_LEAN,
        columns=_DISTILLED,
        kept=(WITHOUT,),
    ),
    "hinton-fashionmnist": Study(
        about="Hinton's experiment on 10,000 images of Fashion-MNIST: nets of 1200-1200 and 800-800 units, T = 20",
        variants=_hinton("fashionmnist", f"{_CLOTHES} --data.batch_size 128", "Dress", f"{_CLOTHES} {_LEFT_OUT}"),
        common=_LEAN,
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
        common=f"{_ALL_16} {_EIGHT_EPOCHS} {_LEAN}",
        columns=_DISTILLED,
        root="data/cifar10-jpeg",
    ),
    "temperature": Study(
        about="Temperatures for students of two sizes, from the same ResNet-56: 20,000 of its images, without "
        "augmentation, and cached logits",
        variants={
            "teacher": f"{_RESNET56} {_ALL_16} {_EIGHT_EPOCHS} {_LEAN}",
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
        common=_LEAN,
        columns=_DISTILLED,
        root="data/cifar10-jpeg",
    ),
    "continual-mlp": Study(
        about="Split Fashion-MNIST: 5 tasks of 2 classes, 5 epochs each, a net of 400-400 units",
        variants=_sequences(),
        columns=("memory_megabytes", "flops_per_image", "training_minutes"),
        groups=_SCENARIOS,
        of_groups=("test/average_accuracy", "test/forgetting"),
        root="data",
    ),
    "continual-cnn": Study(
        about="Split Fashion-MNIST: 5 tasks of 2 classes, 2 epochs each, a small convolutional network",
        variants=_sequences(
            "--model.encoder ConvNet --model.encoder.widths [16,32,64] --model.encoder.norm group "
            "--data.epochs_per_task 2 --trainer.check_val_every_n_epoch 2"
        ),
        columns=("memory_megabytes", "flops_per_image", "training_minutes"),
        groups=_SCENARIOS,
        of_groups=("test/average_accuracy", "test/forgetting"),
        root="data",
    ),
    "lwf-related": Study(
        about="A task after a related one: 4 vehicles and then 6 animals of CIFAR-10 (JPEG), 1,000 images of each at "
        "16 × 16 pixels, ResNet-20, 12 epochs each",
        variants=_two_tasks(
            "lwf-vehicles-animals",
            2,
            "--data.base Subset --data.base.per_class 1000 --data.base.base ImageFolder --data.base.base.root <root> "
            "--data.base.base.image_size 16 --data.base.base.cache true --data.epochs_per_task 12",
        ),
        columns=("test/task_1", "test/task_2", "training_minutes"),
        root="data/cifar10-jpeg",
    ),
    "lwf-unrelated": Study(
        about="A task after an unrelated one: 20,000 images of Fashion-MNIST, 8 epochs, and then 1,257 handwritten "
        "digits, 60 epochs, a small convolutional network",
        variants=_two_tasks(
            "lwf-fashionmnist-digits",
            10,
            "--data.base Subset --data.base.per_class 2000 --data.base.base FashionMNIST --data.base.base.root <root> "
            "--data.epochs_per_task [8,60]",
        ),
        columns=("test/task_1", "test/task_2", "training_minutes"),
        root="data",
    ),
}
