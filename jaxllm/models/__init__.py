"""Transformers: a table of parameters, thin Linen modules that declare them, and presets of known sizes."""
