"""What runs beside training: evaluation, monitoring, pictures and the run's directory."""

from recipes.callbacks.checkpoint import Checkpoint
from recipes.callbacks.checkpoint_io import AtomicCheckpointIO
from recipes.callbacks.class_report import ClassReport
from recipes.callbacks.collapse import CollapseMonitor, effective_rank
from recipes.callbacks.compile import CompileEncoder
from recipes.callbacks.continual_report import ContinualReport
from recipes.callbacks.distillation_report import DistillationReport
from recipes.callbacks.health import Health
from recipes.callbacks.max_norm import MaxNorm
from recipes.callbacks.pictures import Pictures
from recipes.callbacks.predictions import PredictionFile
from recipes.callbacks.representation_probe import RepresentationProbe
from recipes.callbacks.run_directory import RunDirectory

__all__ = [
    "AtomicCheckpointIO",
    "Checkpoint",
    "ClassReport",
    "CollapseMonitor",
    "CompileEncoder",
    "ContinualReport",
    "DistillationReport",
    "Health",
    "MaxNorm",
    "Pictures",
    "PredictionFile",
    "RepresentationProbe",
    "RunDirectory",
    "effective_rank",
]
