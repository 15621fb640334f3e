"""The node *WanVideo Block Swap Report*: what was planned and what was measured, and a picture."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from .clone.holding import last_holding_of
from .clone.patcher import release, transformer_of
from .seams import host
from .seams.host_names import require
from .types import CATEGORY, found_by, model_input
from .wrapper.pack import is_wrappers, takeover_on, what_was_said


class BlockSwapReportNode(io.ComfyNode):
    """Tells what block swap did to a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BlockSwapWanVideoReport",
            display_name="WanVideo Block Swap Report",
            category=CATEGORY,
            **found_by("block swap report", "timeline", "block swap statistics"),
            description="What is where, bytes and seconds, hidden and exposed, as a text and as a "
            "timeline of the last steps. Connect what the sampler gives, so that it runs after it.",
            inputs=[
                model_input("The model that the sampler ran, with block swap on it."),
                io.AnyType.Input(
                    "after",
                    optional=True,
                    tooltip="Anything that the sampler gives, such as its latents: the report is "
                    "made after it.",
                ),
                io.Boolean.Input(
                    "free_host_memory",
                    default=False,
                    tooltip="Afterwards unload the model and unlock the host memory of its blocks. "
                    "The next run loads it again.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The report, a line a figure."),
                io.Image.Output(
                    display_name="timeline",
                    tooltip="The last steps as a picture: blocks computing, copies, and where the "
                    "device waited.",
                ),
            ],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")  # never equal: each run has its own report

    @classmethod
    def execute(
        cls, model: Any, after: Any = None, free_host_memory: bool = False
    ) -> io.NodeOutput:
        text, picture = _report(model)
        if free_host_memory:
            text += "\n  " + (_free_wrappers(model) if is_wrappers(model) else _free(model))
        return io.NodeOutput(text, picture, ui=ui.PreviewText(text))


def _report(model: Any) -> tuple[str, torch.Tensor]:
    if is_wrappers(model):
        return _report_on_wrappers(model)
    transformer_of(model)
    holding = last_holding_of(model.model)
    if holding is None or holding.swap is None:
        return "no blocks were swapped in this model yet: run a sampler with it first", _blank()
    return holding.swap.report().text(), _picture(holding.swap)


def _report_on_wrappers(model: Any) -> tuple[str, torch.Tensor]:
    """What was handed over and, where we stream, what was measured in the last run."""
    said, takeover = what_was_said(model), takeover_on(model)
    if takeover is None or takeover.swap is None:
        return said, _blank()
    return f"{said}\n{takeover.swap.report().text()}", _picture(takeover.swap)


def _picture(swap: Any) -> torch.Tensor:
    """The timeline as ComfyUI has images: `[1, height, width, 3]`, 0 to 1."""
    import numpy as np
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timeline.png"
        swap.timeline(path)
        with Image.open(path) as drawn:
            pixels = np.asarray(drawn.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels)[None]


def _blank() -> torch.Tensor:
    return torch.ones(1, 64, 64, 3, dtype=torch.float32, device="cpu")


def _free_wrappers(model: Any) -> str:
    takeover = takeover_on(model)
    if takeover is None:
        return "no host memory of its blocks is locked"
    takeover.close()
    return "the host memory of its blocks was unlocked"


def _free(model: Any) -> str:
    """Unloads every clone of the model, as ComfyUI's own *free* does for all models."""
    require()
    host.unload(model)
    release(model.model)
    host.empty_cache()
    return "the model was unloaded and the host memory of its blocks unlocked"
