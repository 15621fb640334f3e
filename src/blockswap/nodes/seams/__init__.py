"""Where other people's code is touched: ComfyUI's internals and the GGUF pack's, by name."""
