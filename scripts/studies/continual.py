"""Continual learning: sequences of tasks, and two tasks."""

from studies.base import Study

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


def _weight_decays() -> dict[str, str]:
    """The two learners whose packaged configs have a weight decay, with that and without."""
    variants = {}
    for name, method, packaged, scenarios in (
        ("LwF", "lwf", "5e-4", _SCENARIOS),
        ("iCaRL, 500", "icarl", "1e-5", ("task", "class")),
    ):
        for weight_decay in (packaged, "0"):
            for scenario in scenarios:
                config = f"--config {method}-split-fashionmnist --data.base.root <root> --data.scenario {scenario}"
                variants[f"{name}, weight decay {weight_decay}: {scenario}"] = (
                    f"{config} --model.optimizer.weight_decay {weight_decay}"
                )
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
    "continual-weight-decay": Study(
        about="LwF and iCaRL with the weight decay of their configs and without, as in the study continual-mlp",
        variants=_weight_decays(),
        columns=("training_minutes",),
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
