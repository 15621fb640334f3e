"""What ComfyUI calls when it loads the pack: which nodes there are."""

from comfy_api.latest import ComfyExtension, io

from . import plan_route
from .args_node import BlockSwapArgsNode
from .loader_node import BlockSwapLoaderNode
from .report_node import BlockSwapReportNode
from .seams import host
from .swap_node import ALIAS, BlockSwapAliasNode, BlockSwapNode


class BlockSwapExtension(ComfyExtension):
    """The four nodes, and the alias where its id is free."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        nodes = [BlockSwapNode, BlockSwapArgsNode, BlockSwapLoaderNode, BlockSwapReportNode]
        if not host.is_taken(ALIAS):
            nodes.append(BlockSwapAliasNode)
        return nodes


async def comfy_entrypoint() -> ComfyExtension:
    plan_route.offer()
    return BlockSwapExtension()
