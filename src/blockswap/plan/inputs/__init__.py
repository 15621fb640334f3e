"""What a plan is made of: byte counts of a model, a clip, a machine. Plain values."""
