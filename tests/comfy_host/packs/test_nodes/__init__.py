"""Nodes for the tests alone: encoders that are too large to be had small, and an eye on memory.

ComfyUI's text and vision encoders have fixed sizes of gigabytes. These stand where their loaders
stand and give what a Wan model takes, in the right shapes, from the text's or image's bytes alone.
"""

import hashlib

import comfy.model_management
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

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)  # the host asks its outputs for what only some have


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


class TestInterruptInBlock:
    """Presses *interrupt* inside one block of one forward, as a person might."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        number = ("INT", {"default": 0})
        return {"required": {"model": ("MODEL",), "block": number, "forward": number}}

    def patch(self, model, block: int, forward: int) -> tuple:
        runs = 0

        def interrupt(args: dict, extra: dict) -> dict:
            nonlocal runs
            runs += 1
            if runs > forward:
                comfy.model_management.interrupt_current_processing()
                comfy.model_management.throw_exception_if_processing_interrupted()
            return extra["original_block"](args)

        patched = model.clone()
        patched.set_model_patch_replace(interrupt, "dit", "double_block", block)
        return (patched,)


NODE_CLASS_MAPPINGS = {
    "TestInterruptInBlock": TestInterruptInBlock,
    "TestTextEncoderLoader": TestTextEncoderLoader,
    "TestVisionEncoderLoader": TestVisionEncoderLoader,
}
