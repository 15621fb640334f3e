"""ComfyUI's Wan models in pieces of tokens: when, how large, and how a block computes then."""
