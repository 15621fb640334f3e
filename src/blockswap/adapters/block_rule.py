"""The rule that finds the blocks of any model: which module lists hold them, which members count.

The members of a list are blocks when the model itself calls them repeated, or when two or more are
of one class. Of lists inside each other the outermost counts, unless the model names what is in the
inner one: a stage that nobody named is not a block where its layers are. Members by name (heads,
modulations) are blocks only where lists hold less than half of the parameters. A bare layer (a
norm, a projection), a member that is never called and one far smaller than the largest are no
blocks.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import ModelError

# A member smaller than this share of the largest block saves nothing and costs a visit.
LEAST_SHARE = 0.01

Container = Literal["list", "names", "sequence", ""]


@dataclass(frozen=True, slots=True)
class ModuleNode:
    """A module: `path` from the root, parameter bytes with all that is below, each counted once.

    `container` says whether it only holds members: a `list` is never called itself, nor is one that
    holds them by `names`; a `sequence` runs them one after the other. `layer`: one operation of
    torch, without children. `table`: an embedding, of which a forward reads some rows.
    """

    path: str
    class_name: str
    nbytes: int
    children: tuple["ModuleNode", ...] = ()
    container: Container = ""
    callable: bool = True
    layer: bool = False
    table: bool = False


@dataclass(frozen=True, slots=True)
class FoundList:
    """A list of blocks: where it hangs, and the paths of the members that are blocks, in order."""

    path: str
    members: tuple[str, ...]


def find_block_lists(
    root: ModuleNode, repeated: Collection[str], *, known: Collection[str] = ()
) -> tuple[FoundList, ...]:
    """The lists of blocks of a model in the order in which it defines them.

    `repeated`: class names that the model calls repeated. `known`: paths of lists whose members are
    blocks whatever they are. Raises ModelError where what is found holds less than half of the
    parameters, embeddings aside: then it is not known what the model's blocks are.
    """
    names = frozenset(repeated)
    found = _large_ones(root, names, frozenset(known))
    if not _hold_most(root, found):
        found = _large_ones(_by_name_as_lists(root), names, frozenset(known))
    if not any(path in known for path, _ in found):
        _refuse_few(root, found)
    return tuple(FoundList(path, tuple(m.path for m in kept)) for path, kept in found)


def _large_ones(
    root: ModuleNode, names: frozenset[str], known: frozenset[str]
) -> list[tuple[str, list[ModuleNode]]]:
    """Each list with its blocks but those that are far smaller than the largest."""
    taken = list(_outermost(root, names, known))
    largest = max((member.nbytes for _, members in taken for member in members), default=0)
    found = []
    for node, members in taken:
        least = 0 if node.path in known else max(LEAST_SHARE * largest, 1)
        kept = [member for member in members if member.nbytes >= least]
        if kept:
            found.append((node.path, kept))
    return found


def _by_name_as_lists(node: ModuleNode) -> ModuleNode:
    children = tuple(map(_by_name_as_lists, node.children))
    container: Container = "list" if node.container == "names" else node.container
    return replace(node, children=children, container=container)


def given_block_lists(root: ModuleNode, paths: Collection[str]) -> tuple[FoundList, ...]:
    """The lists that a person names, with every member that is called and has parameters.

    Raises ModelError for a path that is no list, has no such member, or lies inside another's.
    """
    root = _by_name_as_lists(root)
    nodes = {node.path: node for node in _walk(root)}
    found: list[FoundList] = []
    for path in dict.fromkeys(paths):
        node = nodes.get(path)
        if node is None or not node.container:
            raise ModelError(_no_list(root, path, node))
        members = tuple(m.path for m in _members(node) if m.nbytes)
        if not members:
            raise ModelError(
                f"block_lists names {path}, and no member of it runs by itself and has "
                "parameters: name a list of blocks"
            )
        found.append(FoundList(path, members))
    _refuse_nested(found)
    order = list(nodes)
    return tuple(sorted(found, key=lambda one: order.index(one.path)))


def _outermost(
    node: ModuleNode,
    names: frozenset[str],
    known: frozenset[str],
    taken: frozenset[str] = frozenset(),
) -> Iterator[tuple[ModuleNode, list[ModuleNode]]]:
    """The lists of blocks with their members; nothing inside a member is looked at."""
    members = [one for one in _blocks_of(node, names, known) if one.path not in taken]
    if members and (node.path in known or not _names_inside(members, names)):
        yield node, members
        taken |= {member.path for member in members}
    for child in node.children:
        if child.path not in taken:
            yield from _outermost(child, names, known, taken)


def _blocks_of(node: ModuleNode, names: frozenset[str], known: frozenset[str]) -> list[ModuleNode]:
    """The members of a list that can be blocks; none where it is no list of blocks."""
    members = _members(node)
    if node.path in known:
        return members
    members = [m for m in members if not m.layer and m.nbytes]
    classes = Counter(member.class_name for member in members)
    if any(count > 1 or _short(name) in names for name, count in classes.items()):
        return members
    return []


def _members(node: ModuleNode) -> list[ModuleNode]:
    """What a list holds that runs; of a list of lists, what those hold."""
    if node.container in ("", "names"):
        return []
    members = [child for child in node.children if child.callable]
    if not members and all(child.container for child in node.children):
        return [one for child in node.children for one in child.children if one.callable]
    return members


def _names_inside(members: list[ModuleNode], names: frozenset[str]) -> bool:
    """Whether members that the model does not name are made of blocks that it does name."""
    if any(_short(member.class_name) in names for member in members):
        return False
    whole = sum(member.nbytes for member in members)
    inner = sum(
        block.nbytes
        for member in members
        for _, blocks in _outermost_named(member, names)
        for block in blocks
    )
    return inner * 2 >= whole > 0


def _outermost_named(
    node: ModuleNode, names: frozenset[str]
) -> Iterator[tuple[ModuleNode, list[ModuleNode]]]:
    members = [child for child in node.children if _short(child.class_name) in names]
    if node.container and members:
        yield node, members
        return
    for child in node.children:
        yield from _outermost_named(child, names)


def _walk(node: ModuleNode) -> Iterator[ModuleNode]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _short(class_name: str) -> str:
    return class_name.rpartition(".")[2]


def _hold_most(root: ModuleNode, found: list[tuple[str, list[ModuleNode]]]) -> bool:
    """Whether blocks hold at least half of the parameters, embeddings aside."""
    computed = root.nbytes - sum(node.nbytes for node in _walk(root) if node.table)
    return bool(found) and _held(found) * 2 >= computed


def _held(found: list[tuple[str, list[ModuleNode]]]) -> int:
    return sum(member.nbytes for _, kept in found for member in kept)


def _refuse_few(root: ModuleNode, found: list[tuple[str, list[ModuleNode]]]) -> None:
    name = _short(root.class_name)
    if not found:
        raise ModelError(
            f"{name} has no transformer blocks (no list of modules that it calls repeated or that "
            'are of one class): name its lists with block_lists=("path.of.the.list",)'
        )
    if not _hold_most(root, found):
        computed = root.nbytes - sum(node.nbytes for node in _walk(root) if node.table)
        paths = ", ".join(path for path, _ in found)
        raise ModelError(
            f"the blocks found in {name} ({paths}) hold {_held(found)} of {computed} bytes "
            'of its parameters, less than half: name the lists, block_lists=("path.of.the.list",)'
        )


def _refuse_nested(found: list[FoundList]) -> None:
    for inner in found:
        for outer in found:
            if any(inner.path.startswith(f"{member}.") for member in outer.members):
                raise ModelError(
                    f"block_lists names {inner.path} and {outer.path}, which holds it: a block "
                    "cannot lie inside another, name one of the two"
                )


def _no_list(root: ModuleNode, path: str, node: ModuleNode | None) -> str:
    there = [one.path for one in _walk(root) if one.container and one.nbytes]
    outer = [one for one in there if not any(one.startswith(f"{other}.") for other in there)]
    has = f"has the lists {', '.join(outer[:6])}" if outer else "has no list of modules"
    what = "is no list of modules" if node else "is not there"
    return f"block_lists names {path!r}, which {what}: {_short(root.class_name)} {has}"
