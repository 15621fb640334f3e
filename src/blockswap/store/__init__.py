"""Stores: where the bytes of streamed units rest on the host, and how they are read."""
