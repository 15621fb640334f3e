"""Beside FSDP2: what `fully_shard` with CPU offload and ours bring and hold for one model."""
