class CheckpointMismatch(ValueError):
    """A checkpoint that does not fit the run that resumes it, because of an option that cannot change."""
