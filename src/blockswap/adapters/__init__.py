"""Adapters: what is known of Wan's models and of diffusers' classes, live or without weights."""
