"""Callbacks: evaluation, monitoring, pictures and the run directory."""

from recipes.callbacks.monitoring.collapse import CollapseMonitor
from recipes.callbacks.monitoring.health import Health
from recipes.callbacks.reporting.class_report import ClassReport
from recipes.callbacks.reporting.continual_report import ContinualReport
from recipes.callbacks.reporting.distillation_report import DistillationReport
from recipes.callbacks.reporting.pictures import Pictures
from recipes.callbacks.reporting.predictions import PredictionFile
from recipes.callbacks.reporting.representation_probe import RepresentationProbe
from recipes.callbacks.running.best_checkpoint import BestCheckpoint
from recipes.callbacks.running.checkpoint import Checkpoint
from recipes.callbacks.running.checkpoint_io import AtomicCheckpointIO
from recipes.callbacks.running.compile import CompileEncoder
from recipes.callbacks.running.feature_collector import FeatureCollector
from recipes.callbacks.running.max_norm import MaxNorm
from recipes.callbacks.running.run_directory import RunDirectory
from recipes.callbacks.running.signals import Interrupted, Signals
from recipes.callbacks.running.stop_on_signal import StopOnSignal
from recipes.callbacks.running.summary import Summary
from recipes.evaluation.collapse import effective_rank

__all__ = [
    "AtomicCheckpointIO",
    "BestCheckpoint",
    "Checkpoint",
    "ClassReport",
    "CollapseMonitor",
    "CompileEncoder",
    "ContinualReport",
    "DistillationReport",
    "FeatureCollector",
    "Health",
    "Interrupted",
    "MaxNorm",
    "Pictures",
    "PredictionFile",
    "RepresentationProbe",
    "RunDirectory",
    "Signals",
    "StopOnSignal",
    "Summary",
    "effective_rank",
]
