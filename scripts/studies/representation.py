"""Learning without labels: contrastive learning, bootstrap, and a few labels."""

from studies.base import LEAN, Study

_SHORT = f"--trainer.max_epochs 50 --trainer.check_val_every_n_epoch 50 {LEAN}"
_CIFAR10 = f"--data.root <root> {LEAN}"

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
        common=LEAN,
        columns=("test/accuracy", "test/student_accuracy", "steps"),
    ),
}
