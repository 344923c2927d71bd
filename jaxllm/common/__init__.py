"""What every folder shares: the axis legend, pytree paths with regex labels, and named random streams."""
