"""LoRA files: what was asked, how each program spells it, and which weight each tensor changes."""
