"""One unit: how it gets into a slot, becomes compute weights, and hangs in the model."""
