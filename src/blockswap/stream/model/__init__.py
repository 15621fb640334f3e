"""What is installed on a model while it is swapped."""
