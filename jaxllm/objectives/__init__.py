"""Losses as sums: `loss(...) -> (loss_sum, weight_sum, metrics)`. Whoever trains normalises once, globally."""
