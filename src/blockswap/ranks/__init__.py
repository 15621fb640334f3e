"""Ranks: several processes with one model; what they must agree on, and the memory they share."""
