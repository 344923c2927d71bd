"""Training: optimizer and schedule, state, the jitted step, checkpoints, metrics and the loop."""
