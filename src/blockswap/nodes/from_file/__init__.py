"""Weights that stay in their checkpoint file: what it holds, and how each is reached."""
