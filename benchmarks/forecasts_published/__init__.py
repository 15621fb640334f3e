"""Forecast seconds held against runs that others published: prints both and the error.

python -m benchmarks.forecasts_published

The forecast counts the forwards of guided steps (two each) in bf16, products in fp8 where the run
was told to be, with blocks streamed where the card is too small. Text encoder, VAE and loading are
not in it and may be in the published figures.
"""
