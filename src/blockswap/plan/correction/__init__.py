"""The plan corrected while it runs: by what was measured, or by an out-of-memory."""
