"""A model whose blocks run in pieces: what is installed, when a block runs whole, what is said.

Instance attributes `forward` on the model and on its blocks, so hooks of torch and whatever others
put around a forward go on working. `remove()` leaves each as it was found.
"""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from ..adapters.compiled import IMPL
from ..adapters.families import bare
from ..plan.inputs.pieces import sizes_below
from .compiled import compiled_call, compiler_of
from .cutting import cut, cut_alike, two_of_each_size
from .diffusers_family import DIFFUSERS
from .family import Family, Loan
from .onlookers import mark, onlookers, why_before, why_parts, why_whole
from .replaced import Works, why_replaced
from .visit import Piece

Tell = Callable[[str], None]


class Pieces:
    """What is installed on a model so that it runs in pieces of at most `chunk_tokens` tokens.

    Whether the class gives the same both ways is asked before (`trial.why_never`).

    `chunk_tokens` may be set between forwards; 0 runs everything whole. `tell` is handed each
    sentence on what runs whole although pieces were asked for, once.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        chunk_tokens: int,
        tell: Tell,
        *,
        family: Family = DIFFUSERS,
        samples: bool = False,
    ) -> None:
        """`samples`: only two pieces of each size run, for who follows it without data."""
        self.family = family
        self.asked = bool(chunk_tokens)  # whoever made it said how many
        self.chunk_tokens = chunk_tokens
        self._samples = samples
        self._on_blocks = False
        self._root: Any = bare(model)
        self._blocks = family.blocks(self._root)
        self._tell, self._told = tell, set[str]()
        self._tokens = 0  # of the last forward of the model that was seen
        self._reached = False  # since it was last asked
        self.loan = Loan()
        self._cuttable: dict[str, _BlockForward] = {}
        self._cleared = False  # in a forward of ours, in which every block was looked at
        self._installed: list[tuple[torch.nn.Module, str, Any]] = []
        self._why_hosts_own = None if samples else family.why_hosts_own(self._root)
        if family.has_model(self._root):
            self._install_on_model(family.model_forward)
        if chunk_tokens:
            self._install_on_blocks()

    def _install_on_model(self, name: str) -> None:
        if why := why_before(self._root, name):
            self._why_hosts_own = (
                "blocks run in pieces and write each its result into memory of its own: of the "
                f"model, {why}"
            )
            return
        self._install(self._root, _ModelForward(self, self._root, name), name)

    def _install_on_blocks(self) -> None:
        """Later than on the model where memory runs out: nothing hangs on blocks before."""
        if self._on_blocks:
            return
        self._on_blocks = True
        if self._why_hosts_own is not None:
            self.say(self._why_hosts_own)
        for name, block in self._blocks.items():
            if self._may_be_cut(name, block, why_before(block) or why_replaced(block)):
                forward = _BlockForward(self, name, block)
                self._install(block, forward)
                self._cuttable[name] = forward
        self.look_for_graphs()

    def look_for_graphs(self) -> None:
        """Blocks that were compiled since: what stands in front of their graph asks us first."""
        for name, forward in self._cuttable.items():
            block = self._blocks[name]
            if call := compiled_call(block, forward.serves_call):
                self._set(block, IMPL, call)

    def shrink(self) -> int | None:
        """After a forward that ran out of memory: the next smaller size, or None at the end."""
        now = min(self.chunk_tokens or self._tokens, self._tokens)
        smaller = sizes_below(now)
        if not smaller:
            return None
        self.resize(smaller[0])
        return self.chunk_tokens

    def resize(self, chunk_tokens: int) -> None:
        """The next forward runs in pieces of at most so many tokens; 0: whole."""
        self.chunk_tokens = chunk_tokens
        if chunk_tokens:
            self._install_on_blocks()

    def _install(self, module: Any, forward: Any, name: str = "forward") -> None:
        self._set(module, name, mark(functools.wraps(forward.original)(forward.call)))

    def _set(self, module: Any, name: str, ours: Any) -> None:
        before = vars(module).get(name)
        setattr(module, name, ours)
        self._installed.append((module, name, (ours, before)))

    def remove(self) -> None:
        """Gives every module back the forward that it had; what others put around ours stays."""
        self.chunk_tokens = 0
        for module, name, (ours, before) in self._installed:
            if vars(module).get(name) is ours:
                delattr(module, name)
                if before is not None:
                    setattr(module, name, before)
        self._installed.clear()
        self._cuttable.clear()

    def cut(self, tokens: int) -> tuple[Piece, ...]:
        pieces = cut(tokens, self.chunk_tokens)
        return two_of_each_size(pieces) if self._samples else pieces

    def cuts(self, tokens: int) -> bool:
        """Whether so many tokens are cut at all, here and now."""
        if not self.chunk_tokens or torch.compiler.is_compiling() or torch.is_grad_enabled():
            return False
        return len(self.cut(tokens)) > 1

    def expects(self, tokens: int) -> bool:
        """Notes a forward of the model with so many tokens; whether it is cut."""
        self._tokens, self._reached = tokens, True
        return self.cuts(tokens)

    def reached(self) -> None:
        self._reached = True

    def were_passed_by(self) -> bool:
        """Whether a forward has run that never came here: a compiled one does not."""
        passed = bool(self.chunk_tokens) and not self._reached
        self._reached = False
        return passed

    def may_cut(self, name: str, block: torch.nn.Module, why: str | None) -> bool:
        """`why`: what of this very call keeps it from being cut."""
        return (self._cleared and why is None) or self._may_be_cut(name, block, why)

    def _may_be_cut(self, name: str, block: torch.nn.Module, why: str | None = None) -> bool:
        why = why or why_whole(block, self.family)
        if why is not None:
            self.say(f"{name} runs whole and not in pieces: {why}")
        return why is None

    def nobody_looks_on(self) -> bool:
        """Whether the model's forward may be ours, whose blocks write into their input."""
        if not all(self._may_be_cut(name, block) for name, block in self._blocks.items()):
            return False
        why = self._wrapped() or onlookers(self._blocks.values())
        why = why or why_parts(self._root, self._blocks.values())
        if why is not None:
            self.say(
                f"blocks run in pieces and write each its result into memory of its own: {why}, "
                "so the hidden states may be held by others"
            )
        return why is None

    def _wrapped(self) -> str | None:
        """What other code does between the blocks, seen by what stands in front of our forwards."""
        ours = {id(m): call for m, name, (call, _) in self._installed if name != IMPL}
        if all(vars(b).get("forward") is ours.get(id(b), self) for b in self._blocks.values()):
            return None
        return "the forward of a block was wrapped by other code"

    def run_model(self, given: dict[str, Any]) -> Any:
        self._cleared = True
        try:
            return self.family.run_model(self._root, given, self.cut, self.loan)
        finally:
            self._cleared = False
            self.loan.end()

    def say(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self._tell(sentence)


class _Forward(ABC):
    """Stands in for a forward, which still runs wherever ours does not serve."""

    def __init__(self, owner: Pieces, module: Any, name: str = "forward") -> None:
        self.original = getattr(module, name)
        self._module, self._attribute = module, name
        self._of_class = name not in vars(module)
        self._owner = owner
        self._signature = inspect.signature(self.original)
        kinds = self._signature.parameters.values()
        self._rest = next((p.name for p in kinds if p.kind is p.VAR_KEYWORD), "")

    @property
    def call(self) -> Callable[..., Any]:
        original = self.original

        def forward(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return original(*args, **kwargs)
            if self.is_as_found():
                given = self._named(args, kwargs)
                if self.serves(given):
                    return self.run(given)
            return self._whole()(*args, **kwargs)

        return forward

    def _whole(self) -> Any:
        """The module's own, as it is now: other packs replace it for all modules of a class."""
        if not self._of_class:
            return self.original
        found = getattr(type(self._module), self._attribute)
        return found.__get__(self._module) if hasattr(found, "__get__") else found

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by name, also those that a forward only hands on."""
        given = self._signature.bind(*args, **kwargs).arguments
        handed_on = given.pop(self._rest, {})
        return {**given, **handed_on}

    @abstractmethod
    def is_as_found(self) -> bool:
        """Whether what ours stands in for is still what it was when it was found to serve."""

    @abstractmethod
    def serves(self, given: dict[str, Any]) -> bool:
        """Whether ours runs, with these arguments by name."""

    @abstractmethod
    def run(self, given: dict[str, Any]) -> Any:
        """What the forward returns."""


class _BlockForward(_Forward):
    """Stands in for the forward of one block."""

    def __init__(self, owner: Pieces, name: str, block: Any) -> None:
        super().__init__(owner, block)
        self._name, self._block = name, block
        self._works = Works(block)

    def is_as_found(self) -> bool:
        self._owner.reached()
        changed = self._works.changed()
        if changed is not None:
            self._owner.say(
                f"{self._name} runs whole and not in pieces: {changed} was replaced by other code "
                "meanwhile"
            )
        return changed is None

    def serves(self, given: dict[str, Any]) -> bool:
        family, owner = self._owner.family, self._owner
        tokens = family.tokens(given)
        if tokens is None or not owner.cuts(tokens):
            return False
        why = family.why_call(self._block, given)
        return owner.may_cut(self._name, self._block, why)

    def run(self, given: dict[str, Any]) -> Any:
        family, owner = self._owner.family, self._owner
        tokens = family.tokens(given)
        assert tokens is not None, "asked before"
        compiler = compiler_of(self._block)
        if compiler is not None:
            alike = cut_alike(tokens, owner.chunk_tokens)
            return family.run_compiled(self._block, given, alike, compiler)
        return family.run_block(self._block, given, owner.cut(tokens), owner.loan)

    def serves_call(self, *args: Any, **kwargs: Any) -> bool:
        return self.is_as_found() and self.serves(self._named(args, kwargs))


class _ModelForward(_Forward):
    """Stands in for the forward of a model whose class is known."""

    def __init__(self, owner: Pieces, root: Any, name: str) -> None:
        super().__init__(owner, root, name)
        self._found = getattr(type(root), name)

    def is_as_found(self) -> bool:
        if getattr(type(self._module), self._attribute) is self._found:
            return True
        self._owner.say(
            "blocks run in pieces and write each its result into memory of its own: the forward of "
            f"{type(self._module).__name__} was replaced by other code meanwhile"
        )
        return False

    def serves(self, given: dict[str, Any]) -> bool:
        self._owner.look_for_graphs()
        tokens = self._owner.family.model_tokens(self._module, given)
        if tokens is None or not self._owner.expects(tokens):
            return False
        return self._owner.nobody_looks_on()

    def run(self, given: dict[str, Any]) -> Any:
        return self._owner.run_model(given)
