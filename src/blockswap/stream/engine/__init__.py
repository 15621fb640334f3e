"""The engine: what is brought when, and what waits for what."""
