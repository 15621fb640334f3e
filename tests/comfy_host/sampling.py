"""Prompts of the smallest whole graph: a model, maybe LoRAs and our node, a sampler, its latent."""

from dataclasses import dataclass, replace
from typing import Any

from .graphs import ARGS, OURS, Graph


@dataclass(frozen=True, slots=True)
class Sampled:
    """One model on its way to one sampler; `chain` are the nodes between, first to last.

    Each of the chain is a class name and its values; the model goes through its `model` input. A
    value that is a dictionary stands for an args node of ours that says this.
    """

    unet: str
    chain: tuple[tuple[str, dict[str, Any]], ...] = ()
    seed: int = 1
    steps: int = 2
    loader: str = "UNETLoader"

    def then(self, class_type: str, **values: Any) -> "Sampled":
        """The same with one more node before the sampler."""
        return replace(self, chain=(*self.chain, (class_type, values)))

    def swapped(self, **asked: Any) -> "Sampled":
        """The same with our node here; `asked` are its arguments, none for its automatic plan."""
        return self.then(OURS, **({"block_swap_args": asked} if asked else {}))

    def lora(self, name: str, strength: float) -> "Sampled":
        """The same with a LoRA here."""
        return self.then("LoraLoaderModelOnly", lora_name=name, strength_model=strength)


def prompt(sampled: Sampled) -> Graph:
    """The graph; `latent` saves what the sampler `sampler` gives."""
    graph: Graph = {
        "text": {"class_type": "TestTextEncoderLoader", "inputs": {}},
        "positive": _encode("a fox in the snow"),
        "negative": _encode("bad quality"),
        "empty": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 64, "height": 64, "length": 9, "batch_size": 1},
        },
        "model": {
            "class_type": sampled.loader,
            "inputs": {"unet_name": sampled.unet, "weight_dtype": "default"},
        },
    }
    last = "model"
    for number, (class_type, values) in enumerate(sampled.chain):
        key = f"chain{number}"
        inputs = {"model": [last, 0], **values}
        for name, value in values.items():
            if isinstance(value, dict):
                asked = {"class_type": f"{OURS}Args", "inputs": {**ARGS, **value}}
                graph[f"{key}-args"], inputs[name] = asked, [f"{key}-args", 0]
        graph[key] = {"class_type": class_type, "inputs": inputs}
        last = key
    graph["sampler"] = _sampler(sampled, last)
    saved = {"samples": ["sampler", 0], "filename_prefix": "latent"}
    graph["latent"] = {"class_type": "SaveLatent", "inputs": saved}
    return graph


def _encode(text: str) -> dict[str, Any]:
    return {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["text", 0]}}


def _sampler(sampled: Sampled, model: str) -> dict[str, Any]:
    links = {"positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["empty", 0]}
    values = {"seed": sampled.seed, "steps": sampled.steps, "cfg": 6.0, "denoise": 1.0}
    how = {"sampler_name": "uni_pc", "scheduler": "simple"}
    return {"class_type": "KSampler", "inputs": {"model": [model, 0], **links, **values, **how}}
