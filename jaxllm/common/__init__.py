"""What every folder shares: axis legend, pytree paths with regex labels, named random streams, a run's processes."""
