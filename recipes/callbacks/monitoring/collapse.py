from lightning.pytorch import Callback, LightningModule, Trainer

from recipes.callbacks.running.feature_collector import FeatureCollector
from recipes.evaluation.collapse import effective_rank
from recipes.nn import feature_std


class CollapseMonitor(Callback):
    """Shows whether features collapse, on the validation images of all devices.

    Logs ``val/feature_std``, 1 for features that spread evenly over the sphere and 0 for a single point, and
    ``val/effective_rank``, the number of dimensions that features use (RankMe: Garrido et al., 2023, arXiv:2210.02885,
    Equation 1). Labels are not needed.
    """

    other_measures = "val/feature_std", "val/effective_rank"

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for the features, except in the sanity check."""
        if not trainer.sanity_checking:
            FeatureCollector.of(trainer).collect("feature")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs both numbers."""
        if trainer.sanity_checking:
            return
        feature = FeatureCollector.of(trainer).gather()["feature"].feature
        if len(feature):
            pl_module.log("val/feature_std", feature_std(feature), sync_dist=True)
            pl_module.log("val/effective_rank", effective_rank(feature), sync_dist=True)
