"""What ComfyUI calls when it loads the pack: which nodes there are."""

from comfy_api.latest import ComfyExtension, io

from .args_node import BlockSwapArgsNode
from .loader_node import BlockSwapLoaderNode
from .report_node import BlockSwapReportNode
from .swap_node import ALIAS, BlockSwapAliasNode, BlockSwapNode


class BlockSwapExtension(ComfyExtension):
    """The four nodes, and the alias where its id is free."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        nodes = [BlockSwapNode, BlockSwapArgsNode, BlockSwapLoaderNode, BlockSwapReportNode]
        if not _is_taken(ALIAS):
            nodes.append(BlockSwapAliasNode)
        return nodes


async def comfy_entrypoint() -> ComfyExtension:
    return BlockSwapExtension()


def _is_taken(node_id: str) -> bool:
    """Whether a pack loaded before this one has the id; one loaded later takes it by itself."""
    import nodes

    return node_id in nodes.NODE_CLASS_MAPPINGS
