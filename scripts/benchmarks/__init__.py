"""What scripts/benchmark measures: each part has add_arguments, run and rows, the lines of README's table."""

PARTS = (
    "losses",
    "augment",
    "step",
    "loader",
    "startup",
    "options",
    "micro_batch",
    "momentum",
    "frozen",
    "distillation",
    "continual",
    "evaluation",
    "probe",
    "gpu",
    "collectives",
    "earlier",
)
