"""What the host's code works with, read without running it."""
