"""What users import and name by now stays where it is, wherever the code behind it goes."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import recipes
from recipes.base.moved import MOVED
from recipes.cli.catalogue import config_names

PUBLIC = {
    "recipes": """
        BYOL DERpp DeiT EWC FeatureExtraction FineTune FineTuning ICaRL InstanceDiscrimination Joint LinearProbe
        LwF MeanTeacher MoCo Recipe Rehearsal SI SVM SimCLR Supervised TeacherStudent load
    """,
    "recipes.augment": """
        BYOLViews ColorJitter Colour Compose DeiTViews GaussianBlur Geometry Grayscale HandwritingViews
        HorizontalFlip InstanceDiscriminationViews Intensity Key Mix MoCoV2Views Normalize RandAugment
        RandomAffine RandomErasing RandomResizedCrop SimCLRViews Solarize SupervisedViews Views integers
        partners permutation uniform
    """,
    "recipes.bootstrap": """
        BYOL
    """,
    "recipes.callbacks": """
        AtomicCheckpointIO Checkpoint ClassReport CollapseMonitor CompileEncoder ContinualReport
        DistillationReport Health MaxNorm Pictures PredictionFile RepresentationProbe RunDirectory
        effective_rank
    """,
    "recipes.continual": """
        ContinualRecipe DERpp EWC FeatureExtraction FineTuning ICaRL Joint LwF Rehearsal SI
    """,
    "recipes.contrastive": """
        InstanceDiscrimination MoCo SimCLR
    """,
    "recipes.distillation": """
        ContrastiveDistillation DeiT LayerLoss Student Teacher TeacherStudent teacher_from
    """,
    "recipes.nn": """
        ConvNet CrossDeviceBatchNorm DistilledViT Encoder FeatureQueue MLP Memory MemoryBank MomentumCopy
        MultiHead Policy QuadraticPenalty ReplayBuffer Replicated ResNet Snapshot Stage TensorList TimmEncoder
        TorchvisionEncoder ViT average_running_statistics check_momentum cosine_momentum detached
        diagonal_fisher evaluating feature_std has_local_batch_norm in_micro_batches load_mismatch load_weights
        projection_head sees_the_batch split_batch_norm stage_features stage_of_state stages
    """,
    "recipes.optim": """
        LARS NORM_LAYERS RunSchedule WarmupCosine keep_lr_factors parameter_groups
    """,
    "recipes.semisupervised": """
        MeanTeacher
    """,
    "recipes.supervised": """
        Supervised
    """,
    "recipes.transfer": """
        FineTune LinearProbe SVM
    """,
    "datamodules": """
        Batch CIFAR10 CIFAR100 Digits FashionMNIST GlobalBatchSampler ImageDataModule ImageDataset ImageFiles
        ImageFolder ImageSelection ImagesInMemory KMNIST MNIST ResumableLoader STL10 SVHN SemiSupervised
        SemiSupervisedSampler Splits Subset TaskBatch TaskImages TaskSequence TaskSplits Tasks
    """,
    "losses": """
        AttentionTransfer BootstrapLoss DecoupledSoftTarget FeatureLoss Hint InfoNCE NCE NTXent RelationalAngle
        RelationalDistance SimilarityPreserving SoftTarget labelled_cross_entropy streamed_logsumexp
        streamed_logsumexp_of_others unit
    """,
}

MODULES = {  # no package exported these before
    "recipes.accuracy_matrix": "AccuracyMatrix MEASURES average_accuracy backward_transfer forgetting forward_transfer",
    "recipes.checkpoint": "checkpoint_path config_of load restored",
    "recipes.classifier": "Classifier",
    "recipes.features": "Collector Features extract forward",
    "recipes.probes": "accuracy few_label_draws knn linear_probe",
    "recipes.recipe": "AnyRecipe Recipe",
    "recipes.transfer.transferability": "h_score leave_one_out leep log_me",
}

CONFIGS = """
    byol-cifar10-mini byol-cifar10 byol-digits byol-fashionmnist byol-imagenet deit-cifar10 deit-digits
    derpp-split-cifar10 derpp-split-digits derpp-split-fashionmnist distill-cifar10 distill-digits
    distill-fashionmnist distill-imagenet ewc-permuted-fashionmnist ewc-rotated-fashionmnist ewc-split-cifar10
    ewc-split-digits ewc-split-fashionmnist feature-extraction-split-digits
    feature-extraction-split-fashionmnist finetune-cifar10 finetune-digits finetune-fashionmnist finetune-folder
    finetuning-permuted-fashionmnist finetuning-rotated-fashionmnist finetuning-split-digits
    finetuning-split-fashionmnist icarl-split-cifar100 icarl-split-digits icarl-split-fashionmnist
    instance-discrimination-cifar10-mini instance-discrimination-cifar10 instance-discrimination-digits
    instance-discrimination-fashionmnist instance-discrimination-imagenet joint-split-digits
    joint-split-fashionmnist linear-probe-cifar10 linear-probe-digits linear-probe-fashionmnist
    linear-probe-imagenet lwf-fashionmnist-digits lwf-split-cifar10 lwf-split-cifar100 lwf-split-digits
    lwf-split-fashionmnist lwf-two-folders lwf-vehicles-animals mean-teacher-cifar10 mean-teacher-digits
    mean-teacher-fashionmnist mean-teacher-imagenet moco-v1-cifar10 moco-v1-digits moco-v1-fashionmnist
    moco-v1-imagenet moco-v2-cifar10-mini moco-v2-cifar10 moco-v2-digits moco-v2-fashionmnist moco-v2-imagenet
    rehearsal-permuted-fashionmnist rehearsal-rotated-fashionmnist rehearsal-split-cifar10
    rehearsal-split-digits rehearsal-split-fashionmnist si-permuted-fashionmnist si-rotated-fashionmnist
    si-split-digits si-split-fashionmnist simclr-cifar10-mini simclr-cifar10-small simclr-cifar10 simclr-digits
    simclr-fashionmnist simclr-folder simclr-imagenet supervised-cifar10 supervised-digits svm-cifar10
    svm-digits svm-fashionmnist teacher-digits teacher-fashionmnist
"""


@pytest.mark.parametrize("package", PUBLIC)
def test_a_package_exports_what_it_did(package):
    assert set(PUBLIC[package].split()) <= set(import_module(package).__all__)
    assert all(hasattr(import_module(package), name) for name in PUBLIC[package].split())


def test_every_export_is_there():
    for package in PUBLIC:
        module = import_module(package)
        assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("old", MODULES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_module_that_has_moved_is_found_by_its_old_name(old):
    module, there = import_module(old), import_module(MOVED[old])
    for name in MODULES[old].split():
        assert getattr(module, name) is getattr(there, name)


@pytest.mark.slow
def test_an_old_name_is_told_once_where_the_module_is_now():
    code = "import warnings; warnings.simplefilter('always'); from recipes.classifier import Classifier"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("recipes.classifier is now recipes.base.classifier") == 1


def test_there_is_no_loose_module_in_recipes():
    loose = {path.name for path in Path(recipes.__file__).parent.glob("*.py")}
    assert loose == {"__init__.py", "__main__.py"}


def test_configs_keep_their_names():
    assert set(CONFIGS.split()) <= set(config_names())
    assert len(config_names()) == len(set(config_names()))
