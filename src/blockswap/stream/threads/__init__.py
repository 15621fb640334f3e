"""What the engine asks of Python: where a thread is, and when the interpreter ends."""
