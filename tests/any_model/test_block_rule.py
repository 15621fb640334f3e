"""The rule of blocks on plain descriptions of modules: no torch, no model."""

import pytest

from blockswap.adapters.block_rule import (
    FoundList,
    ModuleNode,
    find_block_lists,
    given_block_lists,
)
from blockswap.errors import ModelError


def module(name: str, nbytes: int = 0, *children: ModuleNode, **facts: object) -> ModuleNode:
    """`name` is `attribute:Class`; paths are filled in by `rooted`."""
    own = nbytes + sum(child.nbytes for child in children)
    return ModuleNode(name, name.partition(":")[2] or "pack.Part", own, children, **facts)


def listed(attribute: str, *children: ModuleNode, container: str = "list") -> ModuleNode:
    numbered = [ModuleNode(f"{i}:{c.class_name}", *_rest(c)) for i, c in enumerate(children)]
    calls = container == "sequence"
    return module(f"{attribute}:ModuleList", 0, *numbered, container=container, callable=calls)


def _rest(node: ModuleNode) -> tuple[object, ...]:
    return (node.class_name, node.nbytes, node.children, node.container, node.callable, node.layer)


def rooted(*children: ModuleNode, own: int = 0) -> ModuleNode:
    def placed(node: ModuleNode, above: str) -> ModuleNode:
        path = ".".join(filter(None, (above, node.path.partition(":")[0])))
        inside = tuple(placed(child, path) for child in node.children)
        return ModuleNode(path, node.class_name, node.nbytes, inside, *_rest(node)[3:])

    return placed(module(":pack.Model", own, *children), "")


def blocks(count: int, nbytes: int = 100, kind: str = "pack.Block") -> list[ModuleNode]:
    return [module(f"b:{kind}", 0, module("inner:torch.Linear", nbytes, layer=True))] * count


def found(root: ModuleNode, *repeated: str, known: tuple[str, ...] = ()) -> dict[str, int]:
    lists = find_block_lists(root, repeated, known=known)
    return {one.path: len(one.members) for one in lists}


def test_several_lists_with_unequal_members_at_any_depth_are_found_as_they_are_defined() -> None:
    root = rooted(
        module("net:pack.Net", 5, listed("double", *blocks(3, 300)), listed("single", *blocks(9))),
    )
    assert found(root) == {"net.double": 3, "net.single": 9}
    assert find_block_lists(root, ())[0] == FoundList(
        "net.double", ("net.double.0", "net.double.1", "net.double.2")
    )


def test_a_list_inside_a_block_is_no_list_of_blocks() -> None:
    experts = listed("experts", *blocks(4, 50, "pack.Expert"))
    layer = module("l:pack.Layer", 20, experts)
    assert found(rooted(listed("layers", layer, layer))) == {"layers": 2}
    assert found(rooted(listed("layers", layer, layer)), "Layer", "Expert") == {"layers": 2}


def test_a_stage_that_nobody_named_gives_way_to_the_blocks_that_the_model_names() -> None:
    stage = module("s:pack.Stage", 5, listed("layers", *blocks(6)))
    root = rooted(listed("stages", stage, stage))
    assert found(root) == {"stages": 2}
    assert found(root, "Block") == {"stages.0.layers": 6, "stages.1.layers": 6}


def test_a_named_norm_inside_a_block_does_not_take_its_place() -> None:
    norms = listed("norms", *blocks(2, 1, "pack.Norm"))
    block = module("b:pack.Block", 0, module("mlp:torch.Linear", 500, layer=True), norms)
    assert found(rooted(listed("layers", block, block)), "Norm") == {"layers": 2}


def test_a_single_member_counts_where_the_model_names_it() -> None:
    root = rooted(listed("layers", *blocks(1)))
    assert found(root, "Block") == {"layers": 1}
    with pytest.raises(ModelError, match=r"no transformer blocks.*block_lists"):
        find_block_lists(root, ())


def test_a_class_that_is_named_but_in_no_list_is_no_block() -> None:
    root = rooted(module("patch:pack.PatchEmbed", 90), listed("layers", *blocks(4)))
    assert found(root, "PatchEmbed", "Block") == {"layers": 4}


def test_members_under_a_hundredth_of_the_largest_stay_with_the_rest() -> None:
    small = blocks(3, 9, "pack.Small")
    root = rooted(listed("refiner", *small), listed("layers", *blocks(3, 1000), *blocks(1, 10)))
    assert found(root) == {"layers": 4}


def test_bare_layers_and_what_never_runs_are_no_blocks() -> None:
    linear = module("l:torch.Linear", 400, layer=True)
    lists = [module("p:ModuleList", 0, *blocks(2), container="list", callable=False)] * 2
    with pytest.raises(ModelError, match="no transformer blocks"):
        find_block_lists(rooted(listed("projections", linear, linear)), ())
    root = rooted(listed("layers", *lists))
    assert found(root) == {"layers": 4}, "a list of lists: what the inner ones hold is what runs"


def test_a_sequence_of_blocks_is_a_list_and_one_of_layers_is_not() -> None:
    mlp = listed("time", *[module("l:torch.Linear", 50, layer=True)] * 2, container="sequence")
    root = rooted(mlp, listed("trunk", *blocks(5), container="sequence"))
    assert found(root) == {"trunk": 5}


def test_lists_that_hold_less_than_half_are_refused_and_known_ones_are_not() -> None:
    root = rooted(listed("blocks", *blocks(2)), own=201)
    with pytest.raises(ModelError, match=r"Model .blocks. hold 200 of 401 bytes .*block_lists"):
        find_block_lists(root, ())
    assert found(root, known=("blocks",)) == {"blocks": 2}


def test_lists_that_a_person_names_are_taken_as_they_are() -> None:
    inner = module("l:pack.Layer", 1, listed("experts", *blocks(2, 5, "pack.Expert")))
    root = rooted(listed("a", inner, inner), listed("b", *blocks(2, 900)), own=5000)
    assert [one.path for one in given_block_lists(root, ("b", "a", "b"))] == ["a", "b"]
    refused = {
        ("c",): "'c', which is not there: Model has the lists a, b",
        ("b.0",): "'b.0', which is no list",
        ("a", "a.1.experts"): "a.1.experts and a, which holds it",
    }
    for paths, words in refused.items():
        with pytest.raises(ModelError, match=words):
            given_block_lists(root, paths)
