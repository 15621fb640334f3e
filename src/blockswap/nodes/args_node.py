"""The node *WanVideo Block Swap Args*: widgets in, the dictionary that such packs share out."""

from typing import Any

from comfy_api.latest import io

from ..errors import ArgsError, BlockSwapError
from ..selection import BlockSwapArgs
from .types import CATEGORY, BlockSwapArgsType, found_by, rarely_used

_AUTOMATIC = -1


class BlockSwapArgsNode(io.ComfyNode):
    """Makes BLOCKSWAPARGS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BlockSwapWanVideoArgs",
            display_name="WanVideo Block Swap Args",
            category=CATEGORY,
            **found_by("block swap arguments", "offload blocks", "low vram"),
            description="What to stream and with how much memory. Everything may be left as it "
            "is: what is not said is planned automatically.",
            inputs=[*_which(), *_how_much(), *_how()],
            outputs=[
                BlockSwapArgsType.Output(
                    display_name="block_swap_args",
                    tooltip="For WanVideo Block Swap and the loader; WanVideoWrapper's nodes "
                    "take it as well.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        blocks: str = "",
        blocks_to_swap: int = _AUTOMATIC,
        vram_budget: str = "",
        ram_budget: str = "",
        chunk_tokens: int = _AUTOMATIC,
    ) -> bool | str:
        """Called before the prompt runs; a wired input is not known yet and keeps its default."""
        asked = {"blocks": blocks, "blocks_to_swap": blocks_to_swap, "chunk_tokens": chunk_tokens}
        try:
            args_from(asked | {"vram_budget": vram_budget, "ram_budget": ram_budget})
        except BlockSwapError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        return io.NodeOutput(args_from(widgets).to_mapping())


def args_from(widgets: dict[str, Any]) -> BlockSwapArgs:
    """The arguments that the widgets ask for; -1 and an empty text mean automatic.

    Raises ArgsError, also for a budget without a unit: 8 bytes are never what 8 means here.
    """
    for key in ("vram_budget", "ram_budget"):
        _refuse_bare_number(key, widgets.get(key))
    values: dict[str, Any] = {
        key: None if value == "" or (_is_count(key) and value == _AUTOMATIC) else value
        for key, value in widgets.items()
    }
    return BlockSwapArgs(**values)


def _refuse_bare_number(key: str, value: Any) -> None:
    text = str(value).strip()  # a number, where one is wired to it
    if text.replace(".", "", 1).isdecimal() and float(text) != 0:
        raise ArgsError(
            f"{key}='{text}' has no unit: write {text}GiB if you mean {text} x 2^30 bytes, or "
            "another size such as 512MiB"
        )


def _is_count(key: str) -> bool:
    return key in ("blocks_to_swap", "prefetch_blocks", "vace_blocks_to_swap", "chunk_tokens")


def _count(name: str, most: int, tooltip: str, **more: Any) -> Any:
    return io.Int.Input(name, default=_AUTOMATIC, min=_AUTOMATIC, max=most, tooltip=tooltip, **more)


def _which() -> list[Any]:
    return [
        io.String.Input(
            "blocks",
            default="",
            placeholder="0,2,3-5",
            tooltip="Which blocks to stream: numbers and inclusive ranges such as 0-5 or "
            "0,2,3-5. Empty: the plan or the count below decides.",
        ),
        _count(
            "blocks_to_swap",
            9999,
            "How many blocks to stream, spread evenly. -1: the plan decides. More than the model "
            "has means all of them.",
        ),
    ]


def _how_much() -> list[Any]:
    return [
        io.String.Input(
            "vram_budget",
            default="",
            placeholder="8GiB",
            tooltip="Most device memory for weights and slots, such as 8GiB; activations come on "
            "top. With it, blocks and blocks_to_swap name what may be streamed. Empty: what "
            "ComfyUI grants the model.",
        ),
        io.String.Input(
            "ram_budget",
            default="",
            placeholder="16GiB",
            tooltip="Most host memory to lock for streamed blocks, such as 16GiB; with the loader, "
            "the most that rests in RAM while the others are read from the file. Empty: as much "
            "as is needed.",
        ),
    ]


def _how() -> list[Any]:
    return [
        io.Boolean.Input(
            "offload_txt_emb",
            default=False,
            tooltip="Stream the text embedder too. It is small and used once a step.",
            **rarely_used(),
        ),
        io.Boolean.Input(
            "offload_img_emb",
            default=False,
            tooltip="Stream the image embedder too, where the model has one.",
            **rarely_used(),
        ),
        _count(
            "prefetch_blocks",
            40,
            "How many blocks to copy ahead. -1: two. 0: each is copied when it is needed, which "
            "is slow and needs least memory.",
            **rarely_used(),
        ),
        _count(
            "vace_blocks_to_swap",
            9999,
            "How many of the VACE blocks to stream. -1: the plan decides, or none where blocks or "
            "a count is given.",
            **rarely_used(),
        ),
        io.Boolean.Input(
            "use_non_blocking",
            default=True,
            tooltip="Copy while blocks compute. Off: nothing is copied ahead.",
            **rarely_used(),
        ),
        io.Boolean.Input(
            "block_swap_debug",
            default=False,
            tooltip="Print a line for each block with its true times to the console. Slows down.",
            **rarely_used(),
        ),
        _count(
            "chunk_tokens",
            1_000_000,
            "Most tokens that a block of a Wan model computes at once: smaller pieces need less "
            "memory for activations, for the same latents. -1: all together where that fits, else "
            "the largest pieces that do. 0: always all together. At least 64; below 2048 it gets "
            "slower.",
            optional=True,  # and last: saved workflows keep values by place, prompts by name
            **rarely_used(),
        ),
    ]
