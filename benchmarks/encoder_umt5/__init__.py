"""Wan's text encoder, UMT5-XXL, encodes a prompt from its file in 2 GB of memory."""
