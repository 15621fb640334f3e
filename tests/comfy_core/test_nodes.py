"""The nodes as ComfyUI calls them: their arguments, what they refuse, and what they say."""

import asyncio
from types import SimpleNamespace
from typing import Any

import nodes as core
import pytest
import tiny
import torch

from blockswap import BlockSwapArgs
from blockswap.errors import ArgsError, BlockSwapError, ModelError, SelectionError
from blockswap.nodes.args_node import BlockSwapArgsNode, args_from
from blockswap.nodes.clone.holding import holding_of
from blockswap.nodes.extension import comfy_entrypoint
from blockswap.nodes.report_node import BlockSwapReportNode
from blockswap.nodes.swap_node import ALIAS, BlockSwapNode
from blockswap.nodes.wrapper.pack import is_wrappers

WIDGETS: dict[str, Any] = {
    "blocks": "",
    "blocks_to_swap": -1,
    "vram_budget": "",
    "ram_budget": "",
    "offload_txt_emb": False,
    "offload_img_emb": False,
    "prefetch_blocks": -1,
    "vace_blocks_to_swap": -1,
    "use_non_blocking": True,
    "block_swap_debug": False,
}


def test_untouched_widgets_are_automatic() -> None:
    assert args_from(WIDGETS) == BlockSwapArgs()
    (made,) = BlockSwapArgsNode.execute(**WIDGETS).result
    assert BlockSwapArgs.from_mapping(made) == BlockSwapArgs()


@pytest.mark.parametrize(
    "changed",
    [
        {"blocks": "0,2,3-5"},
        {"blocks_to_swap": 0},
        {"blocks_to_swap": 7, "vram_budget": "8GiB", "ram_budget": "16GiB"},
        {"prefetch_blocks": 0, "use_non_blocking": False, "vace_blocks_to_swap": 0},
    ],
)
def test_widgets_arrive(changed: dict[str, Any]) -> None:
    (made,) = BlockSwapArgsNode.execute(**(WIDGETS | changed)).result
    assert BlockSwapArgs.from_mapping(made) == BlockSwapArgs(**changed)


@pytest.mark.parametrize(
    ("widgets", "said"),
    [
        ({"blocks": "3-1"}, "Invalid range: '3-1'"),
        ({"blocks": "a"}, "Invalid integer: 'a'"),
        ({"blocks": "1", "blocks_to_swap": 3}, "blocks='1' names 1 blocks"),
        ({"vram_budget": "much"}, "vram_budget='much' is no size"),
        ({"vram_budget": "8"}, "vram_budget='8' has no unit: write 8GiB"),
        ({"ram_budget": " 1.5 "}, "ram_budget='1.5' has no unit: write 1.5GiB"),
    ],
)
def test_mistakes_are_found_before_anything_runs(widgets: dict[str, Any], said: str) -> None:
    answer = BlockSwapArgsNode.validate_inputs(**widgets)
    assert isinstance(answer, str)
    assert answer.startswith(said)
    assert BlockSwapArgsNode.validate_inputs(blocks="0-3", ram_budget="0") is True
    with pytest.raises(ArgsError, match="has no unit"):  # a wired input is not known before
        BlockSwapArgsNode.execute(**(WIDGETS | {"vram_budget": "8"}))


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("8GB", 8 * 10**9),
        (" 8 GiB ", 8 << 30),
        ("8gib", 8 << 30),
        ("8G", 8 << 30),
        ("1.5 MiB", 3 << 19),
        ("0", 0),
        ("", None),
        ("   ", None),
        (None, None),
    ],
)
def test_budgets_as_people_write_them(text: Any, nbytes: int | None) -> None:
    for key in ("vram_budget", "ram_budget"):
        assert getattr(args_from(WIDGETS | {key: text}), key) == nbytes


@pytest.mark.parametrize(
    "value",
    ["8", " 8 ", "8.5", 8, 8.5, "\N{FULLWIDTH DIGIT EIGHT}", "8 GB GB", "-8GiB", "1e9", True],
)
@pytest.mark.parametrize("key", ["vram_budget", "ram_budget"])
def test_what_is_no_budget_is_refused_in_one_sentence(key: str, value: Any) -> None:
    with pytest.raises(ArgsError, match=key) as told:
        args_from(WIDGETS | {key: value})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("blocks", "meant"),
    [
        (" 0 , 2,3 - 5 ", (0, 2, 3, 4, 5)),
        ("0,0,2,2-3,3", (0, 2, 3)),
        ("5,0", (0, 5)),
        ("0\n2", (0, 2)),
        (" , \n", None),
        ("   ", None),
    ],
)
def test_lists_as_people_write_them(blocks: str, meant: tuple[int, ...] | None) -> None:
    assert args_from(WIDGETS | {"blocks": blocks}).blocks == meant


@pytest.mark.parametrize("blocks", ["3-1", "-1", "0--2", "1.5", "²", "0-", "0;2", "all", 3, True])
def test_what_is_no_list_is_refused_in_one_sentence(blocks: Any) -> None:
    with pytest.raises(BlockSwapError) as told:
        args_from(WIDGETS | {"blocks": blocks})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "key", ["blocks_to_swap", "vace_blocks_to_swap", "prefetch_blocks", "chunk_tokens"]
)
@pytest.mark.parametrize("value", [-2, -9999, 1.5, "3", True])
def test_what_is_no_count_is_refused_in_one_sentence(key: str, value: Any) -> None:
    with pytest.raises(ArgsError, match=key):
        args_from(WIDGETS | {key: value})


def test_the_last_of_two_nodes_on_one_model_is_meant() -> None:
    plain = tiny.model("t2v")
    expected = tiny.sample(plain)
    (first,) = BlockSwapNode.execute(plain, BlockSwapArgs(blocks="0-4").to_mapping()).result
    (model,) = BlockSwapNode.execute(first, BlockSwapArgs(blocks="1,3").to_mapping()).result
    for clone, streamed in ((model, "13"), (first, "01234"), (model, "13")):
        assert torch.equal(tiny.sample(clone), expected)
        assert holding_of(plain.model).plan.streamed == tuple(f"blocks.{n}" for n in streamed)


@pytest.mark.parametrize("given", [None, {}, (1, 2), "wan", 3, torch.zeros(2), SimpleNamespace()])
def test_what_is_no_model_is_refused_in_one_sentence(given: Any) -> None:
    """A switch or a reroute of any type may hand on a CLIP, a VAE or nothing."""
    of_a_clip = SimpleNamespace(cond_stage_model=torch.nn.Linear(1, 1), patcher=tiny.model("t2v"))
    for thing in (given, of_a_clip, SimpleNamespace(patcher=None, first_stage_model=None)):
        with pytest.raises(ModelError, match="which has no diffusion model: connect the MODEL"):
            BlockSwapNode.execute(thing)
        with pytest.raises(ModelError, match="which has no diffusion model"):
            BlockSwapReportNode.execute(thing)


def test_the_page_finds_the_nodes_by_what_people_call_them() -> None:
    from comfy_api.latest import io

    schema: Any = BlockSwapNode.GET_SCHEMA()
    if hasattr(io.Schema("a"), "search_aliases"):
        assert {"block swap", "low vram", "offload"} <= set(schema.search_aliases)


def test_what_only_the_model_can_tell() -> None:
    plain = tiny.model("t2v")
    with pytest.raises(SelectionError, match=r"^Invalid range: '4-6': the model has blocks 0-5"):
        BlockSwapNode.execute(plain, BlockSwapArgs(blocks="4-6").to_mapping())
    with pytest.raises(ArgsError, match="is no block swap argument"):
        BlockSwapNode.execute(plain, {"block_to_swap": 3})
    assert holding_of(plain.model) is None


def test_the_neighbours_dictionary_is_taken_as_it_is() -> None:
    plain = tiny.model("t2v")
    theirs = {"blocks_to_swap": 4, "offload_img_emb": False, "use_non_blocking": False}
    (model,) = BlockSwapNode.execute(plain, theirs).result
    tiny.sample(model)
    streamed = [n for n in holding_of(plain.model).plan.streamed if n.startswith("blocks.")]
    assert len(streamed) == 4


class WrappersModel:
    """A model of a version of the wrapper pack that is not as we expect it."""

    def __init__(self) -> None:
        self.model_options: dict[str, Any] = {}
        self.patches: dict[str, Any] = {}
        transformer = SimpleNamespace(blocks=range(30), patched_linear=False)
        self.model = SimpleNamespace(pipeline={"sd": {}}, diffusion_model=transformer)

    def clone(self) -> "WrappersModel":
        return WrappersModel()

    def swapped(self) -> int:
        """How many blocks the pack would swap: as its `init_blockswap` and its sampler count."""
        asked = self.model_options["transformer_options"]["block_swap_args"]
        return max(0, min(asked["blocks_to_swap"] - 1, 30))


def test_a_wrappers_model_is_handed_arguments_in_its_own_contract() -> None:
    given = WrappersModel()
    assert is_wrappers(given)
    assert not is_wrappers(tiny.model("t2v"))
    (model,) = BlockSwapNode.execute(given, BlockSwapArgs(blocks_to_swap=7).to_mapping()).result
    asked = model.model_options["transformer_options"]["block_swap_args"]
    assert asked.keys() == {
        "blocks_to_swap",
        "offload_img_emb",
        "offload_txt_emb",
        "use_non_blocking",
        "vace_blocks_to_swap",
        "prefetch_blocks",
        "block_swap_debug",
    }
    assert given.model_options == {}
    text, picture = BlockSwapReportNode.execute(model).result
    assert "WanVideoWrapper" in text
    assert "7 blocks were asked" in text
    assert "one more" in text
    assert picture.shape[-1] == 3


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ({"blocks_to_swap": 0}, 0),
        ({"blocks_to_swap": 3}, 3),
        ({"blocks_to_swap": 9999}, 30),
        ({"blocks": "27-29"}, 3),
        ({}, 20),
    ],
)
def test_the_wrapper_pack_swaps_as_many_as_were_asked(asked: dict[str, Any], count: int) -> None:
    mapping = BlockSwapArgs(**asked).to_mapping()
    (model,) = BlockSwapNode.execute(WrappersModel(), mapping).result
    assert model.swapped() == count


@pytest.mark.parametrize("how", ["own linears", "gguf", "unmerged lora"])
def test_where_the_pack_counts_right_nothing_is_added(how: str) -> None:
    given = WrappersModel()
    given.model.diffusion_model.patched_linear = how == "own linears"
    given.model.pipeline["gguf_reader"] = object() if how == "gguf" else None
    given.patches = {"w": 1} if how == "unmerged lora" else {}
    (model,) = BlockSwapNode.execute(given, BlockSwapArgs(blocks_to_swap=3).to_mapping()).result
    assert model.model_options["transformer_options"]["block_swap_args"]["blocks_to_swap"] == 3


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        (
            {"blocks": "38-41"},
            SelectionError,
            r"^Invalid range: '38-41': the model has blocks 0-29",
        ),
        ({"blocks": "0,2,3-5"}, ArgsError, r"^blocks='0,2,3-5' was asked .* takes the last blocks"),
        ({"vram_budget": "8GiB"}, ArgsError, r"^vram_budget was asked .* give blocks_to_swap"),
        ({"ram_budget": "8GiB"}, ArgsError, r"^ram_budget was asked .* give blocks_to_swap"),
    ],
)
def test_what_the_wrapper_pack_cannot_do_is_refused(
    asked: dict[str, Any], error: type[Exception], said: str
) -> None:
    given = WrappersModel()
    with pytest.raises(error, match=said):
        BlockSwapNode.execute(given, BlockSwapArgs(**asked).to_mapping())
    assert given.model_options == {}


def test_the_report_before_during_and_after() -> None:
    plain = tiny.model("t2v")
    (model,) = BlockSwapNode.execute(plain, {"blocks_to_swap": 3}).result
    assert "run a sampler with it first" in BlockSwapReportNode.execute(model).result[0]
    expected = tiny.sample(model)
    text, picture = BlockSwapReportNode.execute(model).result
    assert text.startswith("block swap on cpu: 0 of 6 blocks streamed: on the CPU")
    assert picture.ndim == 4
    assert picture.dtype == torch.float32
    assert 0 <= picture.min() < picture.max() <= 1
    text, _ = BlockSwapReportNode.execute(model, free_host_memory=True).result
    assert text.endswith("the host memory of its blocks unlocked")
    assert holding_of(plain.model) is None
    assert "3 of 6 blocks" in BlockSwapReportNode.execute(model).result[0]
    assert torch.equal(tiny.sample(model), expected)


def test_the_status_line_is_sent_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from blockswap.nodes.runs import status

    sent: list[tuple[str | None, str]] = []
    monkeypatch.setattr(status, "send_text", lambda node, text: sent.append((node, text)))
    monkeypatch.setattr(BlockSwapNode, "hidden", SimpleNamespace(unique_id="12"))
    plain = tiny.model("t2v")
    (model,) = BlockSwapNode.execute(plain, {"blocks_to_swap": 3}).result
    tiny.sample(model)
    node, text = sent[0]
    assert node == "12"
    assert text.startswith("0 of 6 blocks streamed: on the CPU")


@pytest.mark.parametrize("taken", [True, False])
def test_the_missions_id_is_ours_only_where_it_is_free(
    taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if taken:
        monkeypatch.setitem(core.NODE_CLASS_MAPPINGS, ALIAS, object)
    extension = asyncio.run(comfy_entrypoint())
    listed = asyncio.run(extension.get_node_list())
    schemas = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in listed}
    assert (ALIAS in schemas) == (not taken)
    assert "BlockSwapWanVideo" in schemas
    assert not schemas["BlockSwapWanVideo"].is_deprecated
    if not taken:
        assert schemas[ALIAS].is_deprecated  # which keeps it out of the menu
