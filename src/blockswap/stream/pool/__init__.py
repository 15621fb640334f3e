"""The memory that swaps share, and who has it now."""
