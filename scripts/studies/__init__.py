"""The studies by name, one file for each chapter. A study is data: ``recipes.launch`` runs it."""

from studies import continual, distillation, representation
from studies.base import RESULTS, ROOT, Study, measure_study

STUDIES: dict[str, Study] = {**representation.STUDIES, **distillation.STUDIES, **continual.STUDIES}

__all__ = ["RESULTS", "ROOT", "STUDIES", "Study", "measure_study"]
