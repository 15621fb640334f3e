"""Layouts: where each tensor of a block lies, in a file, in a module, in a slab. Plain values."""
