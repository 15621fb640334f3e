"""Nodes for the tests alone: encoders that are too large to be had small, and an eye on memory.

ComfyUI's text and vision encoders have fixed sizes of gigabytes. These stand where their loaders
stand and give what a Wan model takes, in the right shapes, from the text's or image's bytes alone.
"""

import hashlib

import torch

TEXT_SHAPE = (1, 512, 4096)
VISION_SHAPE = (1, 257, 1280)


def _drawn(seed: bytes, shape: tuple[int, ...]) -> torch.Tensor:
    number = int.from_bytes(hashlib.sha256(seed).digest()[:7], "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


class TextEncoder:
    """What CLIPTextEncode asks of a CLIP."""

    def tokenize(self, text: str) -> bytes:
        return text.encode()

    def encode_from_tokens_scheduled(self, tokens: bytes) -> list:
        return [[_drawn(tokens, TEXT_SHAPE), {}]]


class VisionOutput(dict):
    """As comfy.clip_vision.Output: items that are attributes, too."""

    __getattr__ = dict.__getitem__


class VisionEncoder:
    """What CLIPVisionEncode asks of a CLIP_VISION."""

    def encode_image(self, image: torch.Tensor, crop: bool = True) -> VisionOutput:
        hidden = _drawn(image.numpy().tobytes(), VISION_SHAPE)
        return VisionOutput(penultimate_hidden_states=hidden)


class TestTextEncoderLoader:
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {}}

    def load(self) -> tuple:
        return (TextEncoder(),)


class TestVisionEncoderLoader(TestTextEncoderLoader):
    RETURN_TYPES = ("CLIP_VISION",)

    def load(self) -> tuple:
        return (VisionEncoder(),)


NODE_CLASS_MAPPINGS = {
    "TestTextEncoderLoader": TestTextEncoderLoader,
    "TestVisionEncoderLoader": TestVisionEncoderLoader,
}
