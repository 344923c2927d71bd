"""The mathematics, as pure functions on arrays. Nothing here holds parameters or knows of a model."""
