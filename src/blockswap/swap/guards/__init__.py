"""Refusals: what other code does to a swapped or closed model."""
