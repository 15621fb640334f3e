"""The ways in: a loaded model, a checkpoint file, two experts, or a host application's model."""
