"""A core of tomorrow: each name that the nodes work through is taken away in turn.

Whatever is missing, the node says so in one sentence; it never runs to a latent and never dies of
an AttributeError.
"""

import ast
import functools
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from comfy.model_patcher import ModelPatcher
from test_loader import saved

from blockswap import BlockSwapArgs
from blockswap.errors import HostError
from blockswap.nodes.clone.holding import holding_of
from blockswap.nodes.clone.patcher import swap_on_clone
from blockswap.nodes.host_code import wan_forwards
from blockswap.nodes.in_pieces.wan_pieces import WAN
from blockswap.nodes.loading import load_streamed
from blockswap.nodes.runs.wish import Wish
from blockswap.nodes.seams import (
    host,
    host_checkpoints,
    host_dynamic,
    host_names,
    host_wan,
)
from blockswap.nodes.swap_node import BlockSwapNode
from blockswap.pieces import why_never

SINGLE = [
    name
    for alternatives in (*host_names.NAMES, *map("|".join, host_names.TOGETHER.values()))
    for name in alternatives.split("|")
    if host_names._is_there(name)
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    weights = tiny.fp8_scaled(tiny.state_dict("t2v"))
    return saved(tmp_path_factory.mktemp("file"), weights)


def take_away(name: str, patch: pytest.MonkeyPatch) -> None:
    holder, _, last = name.rpartition(".")
    try:
        owner: Any = importlib.import_module(holder)
    except ImportError:
        module, _, cls = holder.rpartition(".")
        owner = getattr(importlib.import_module(module), cls)
    for base in (owner, *getattr(owner, "__subclasses__", list)()):
        if last in vars(base):
            patch.delattr(base, last)


@pytest.mark.parametrize("name", sorted(set(SINGLE)))
def test_a_name_that_is_gone(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny.model("t2v")
    take_away(name, monkeypatch)
    alternatives = next((a for a in host_names.NAMES if name in a.split("|")), name)
    other = [a for a in alternatives.split("|") if a != name and host_names._is_there(a)]
    together = [n for names in host_names.TOGETHER.values() for n in names]
    if other and name not in together:
        host_names.require()  # an older or a newer core, which has the other one
        return
    for ask in (lambda: swap_on_clone(plain, wish()), lambda: load_streamed(path, wish())):
        with pytest.raises(HostError, match=r"^ComfyUI \d.*block swap works through .*: ") as told:
            ask()
        assert name in str(told.value)
        assert "\n" not in str(told.value)


def wish() -> Wish:
    return Wish(BlockSwapArgs(blocks="0-2"))


@pytest.mark.parametrize("name", host_names.METHODS)
def test_a_method_that_is_gone(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny.model("t2v")
    monkeypatch.delattr(ModelPatcher, name)
    for ask in (lambda: BlockSwapNode.execute(plain), lambda: load_streamed(path, wish())):
        with pytest.raises(HostError, match=f"has no ModelPatcher.{name}, which block swap"):
            ask()


@pytest.mark.parametrize("name", [*host_names.ATTRIBUTES, *host_names.SHARED])
def test_an_attribute_that_is_gone(name: str) -> None:
    plain = tiny.model("t2v")
    owner = plain if name in host_names.ATTRIBUTES else plain.model
    kept = getattr(owner, name)
    delattr(owner, name)
    with pytest.raises(HostError, match=f"has no .*{name}, which block swap"):
        swap_on_clone(plain, wish())
    setattr(owner, name, kept)


def test_the_dtype_of_patching_is_never_guessed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management

    assert host.asks_the_device() == hasattr(management, "lora_compute_dtype")
    if not host.asks_the_device():
        return  # this core patches in fp32, by its code
    monkeypatch.delattr(management, "lora_compute_dtype")
    with pytest.raises(HostError, match=r"has no comfy\.model_management\.lora_compute_dtype"):
        load_streamed(path, wish())


def test_a_patch_that_the_host_does_not_note_is_not_lost_in_silence(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.with_lora(load_streamed(path, wish()), 1.0)
    monkeypatch.setattr(host, "is_noted_patch", lambda _: False)
    with pytest.raises(HostError, match="has not noted the patch"):
        tiny.sample(model)


@pytest.mark.parametrize("name", host_names.CUTTING)
def test_without_a_name_that_pieces_need_blocks_run_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny.model("t2v")
    assert why_never(plain.model.diffusion_model, WAN) is None
    monkeypatch.setattr(host_names, "_is_there", lambda asked: asked != name)
    why = why_never(plain.model.diffusion_model, WAN)
    assert why == f"this ComfyUI has no {name}, which pieces work through"


def words(table: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(place, word) for place, wanted in table.items() for word in wanted]


def forget(place: str, word: str, patch: pytest.MonkeyPatch) -> None:
    """The host's code under `place` works with `word` no longer."""
    owner, words_of = host_names._found(place), host_names.words_of
    gone = frozenset({word})
    patch.setattr(
        host_names, "words_of", lambda o: words_of(o) - gone if o is owner else words_of(o)
    )


@pytest.mark.parametrize(("place", "word"), words(host_names.WORDS))
def test_a_word_of_the_hosts_code_that_is_gone(
    place: str, word: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny.model("t2v")
    forget(place, word, monkeypatch)
    for ask in (lambda: swap_on_clone(plain, wish()), lambda: load_streamed(path, wish())):
        with pytest.raises(HostError, match="which block swap works through") as told:
            ask()
        assert f"has no {word} in {place}" in str(told.value)


@pytest.mark.parametrize(("place", "word"), words(host_names.CUTTING_WORDS))
def test_without_a_word_that_pieces_need_blocks_run_whole(
    place: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny.model("t2v")
    assert why_never(plain.model.diffusion_model, WAN) is None
    forget(place, word, monkeypatch)
    why = why_never(plain.model.diffusion_model, WAN)
    assert why == f"this ComfyUI has no {word} in {place}, which pieces work through"


READ = dict(wan_forwards.functions_read())


@pytest.mark.parametrize(("module", "name"), READ)
def test_a_forward_of_tomorrow_runs_whole(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each word that a forward works with is taken away in turn, and a new one comes."""
    root, function = tiny.model("t2v").model.diffusion_model, READ[module, name]
    words_of = host_names.works_with
    assert why_never(root, WAN) is None

    def why(change: Callable[[frozenset[str]], frozenset[str]]) -> str | None:
        with monkeypatch.context() as patch:
            patch.setattr(
                host_names,
                "works_with",
                lambda asked: change(words_of(asked)) if asked is function else words_of(asked),
            )
            return why_never(root, WAN)

    said = f"{module}.{name} {{}}, unlike those that pieces are known for"
    assert why(lambda words: words | {"clip_to_fp16"}) == said.format("works with clip_to_fp16")
    known = [set(text.split()) for text in wan_forwards.FORWARDS[module, name]]
    for word in words_of(function):
        another_core = words_of(function) - {word} in known
        expected = None if another_core else said.format(f"does not work with {word}")
        assert why(lambda words, word=word: words - {word}) == expected  # type: ignore[misc]


def test_a_forward_that_is_gone_or_no_function_runs_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    root = tiny.model("t2v").model.diffusion_model
    for module, name in READ:
        owner = importlib.import_module(module)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, functools.partial(getattr(owner, name)))
            assert f"{module}.{name} does not work with" in str(wan_forwards.why_unread())
    assert wan_forwards.why_unread() is None
    assert why_never(root, WAN) is None


def test_latents_of_a_core_whose_forwards_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny.model("t2v")
    expected = tiny.sample(plain, clip=(1, 5, 14, 14))
    monkeypatch.setattr(host_names, "works_with", lambda asked: frozenset({"other"}))
    model = tiny.swapped(plain, blocks="0-3", chunk_tokens=64)
    assert torch.equal(tiny.sample(model, clip=(1, 5, 14, 14)), expected)
    text = holding_of(plain.model).swap.report().text()
    assert "all blocks run whole, although pieces of 64 tokens were asked: comfy.ldm.wan" in text


# What is read of the host's objects, by the names that these have in our code.
OBJECTS = ("patcher", "clone", "config", "patch", "noted", "loaded", "layer", "executor")
COMMON = ("model", "clear", "items", "update")  # ... and of our own dictionaries of these names
TORCHS = ("_parameters", "bias", "in_features", "out_features")  # ... and torch's of a linear layer


def test_what_is_read_of_the_hosts_objects_is_listed() -> None:
    tables = (host_names.WORDS, host_names.SHARING_WORDS, host_names.CUTTING_WORDS)
    known = {word for table in tables for _, word in words(table)} | {*COMMON, *TORCHS}
    for names in (
        *(host_names.METHODS, host_names.ATTRIBUTES, host_names.SHARED, host_names.DYNAMIC),
        *(host_dynamic.OVERRIDDEN, host_dynamic.ATTRIBUTES, host.OVERRIDDEN),
        [part for name in host_names.NAMES for part in name.split("|")],
    ):
        known |= {name.rpartition(".")[2] for name in names}
    unknown = set()
    nodes = Path(inspect.getfile(host)).parents[1]
    for file in (f for f in nodes.rglob("*.py") if f.parent.name != "wrapper"):
        for node in ast.walk(ast.parse(file.read_text())):
            read = isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2]
            if read in OBJECTS and node.attr not in known:  # type: ignore[attr-defined]
                unknown.add(f"{read}.{node.attr} in {file.name}")  # type: ignore[attr-defined]
    assert unknown == set()


def test_the_list_of_names_is_whole() -> None:
    """Every attribute of a module of the host that the seam files read stands in the list."""
    listed = {n for names in host_names.NAMES for n in names.split("|")} | set(host_names.OPTIONAL)
    for file, also in (
        (host, set()),
        (host_checkpoints, set()),
        (host_dynamic, set(host_names.SHARING)),
        (host_wan, set(host_names.CUTTING)),
    ):
        used = set(_names_of_the_host(Path(inspect.getfile(file))))
        assert used
        have = listed | also
        assert {name for name in used if not any(n.startswith(name) for n in have)} == set()


def test_only_the_seam_files_reach_into_the_host() -> None:
    for file in Path(inspect.getfile(host)).parent.glob("*.py"):
        if not file.name.startswith("host"):
            assert not list(_names_of_the_host(file)), file.name


def _names_of_the_host(file: Path) -> Any:
    """`comfy.utils.get_attr` for each such use in a file, imports under other names resolved."""
    tree = ast.parse(file.read_text())
    alias = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            alias |= {a.asname: a.name for a in node.names if a.asname and "comfy" in a.name}
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("comfy."):
            yield from (f"{node.module}.{a.name}" for a in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            first, _, rest = name.partition(".")
            name = f"{alias[first]}.{rest}" if first in alias else name
            if name.startswith("comfy.") and name.count(".") == 2:
                yield name
