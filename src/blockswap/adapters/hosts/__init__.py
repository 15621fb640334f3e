"""Models of diffusers and transformers from their own folders, files and converters."""
