"""The training loop's machinery: towers, validation, checkpoints, the input queue, the run's log."""
