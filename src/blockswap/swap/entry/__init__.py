"""The ways in: a loaded model, a checkpoint file, two experts, an application of its own."""
