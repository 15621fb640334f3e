"""How long a forward takes: the engine's schedule as arithmetic."""
