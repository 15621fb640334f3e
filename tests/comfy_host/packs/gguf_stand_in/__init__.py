"""A stand-in for the pack that loads GGUF models, with its manners and one packed type, Q8_0.

A packed tensor is an array of bytes that tells another shape, calls itself its own clone, and keeps
patches (LoRA) as notes; its layers unpack and patch it at each use. Files are mapped, not read.
"""

from .pack_nodes import UnetLoaderGGUF

NODE_CLASS_MAPPINGS = {"UnetLoaderGGUF": UnetLoaderGGUF}
