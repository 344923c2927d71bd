"""Tuning with few parameters: how adapters join their base, what they start from, and how AdaLoRA gives out ranks.

Their shapes are in `models/adapters.py`, what they do in `layers/`; the step that trains them is that of all runs.
"""
