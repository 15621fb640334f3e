"""Decoding: how a tensor's stored form becomes the form it computes with, on the device."""
