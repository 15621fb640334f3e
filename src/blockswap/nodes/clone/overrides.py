"""What the host does differently for a clone with block swap: attributes over its methods.

Nothing here is a patcher class of its own: other packs have theirs, and their clones must stay
theirs. A clone gets attributes that stand in front of a few of its methods. The host's own methods
do the work, seen through these:

    partially_load, load   the streamed units are prepared by the host (LoRA included) where they
                           rest, all other modules are loaded as ever, then the swap is opened
    _load_list             hides the streamed units, so that the host neither loads nor counts them
    unpatch_model          closes the swap before weights are restored
    patch_weight_to_device brings a patched weight of a streamed unit back to where it rests
"""

import weakref
from itertools import groupby
from typing import Any

from ...errors import ModelError, PlanError
from ...plan import SwapPlan
from ...swap import FileUnits, Mapped, plan_file_units, plan_units
from ..from_file.arrival import (
    as_loaded,
    forget_patches,
    hang_where_read,
    patch_on_arrival,
    patch_while_running,
    refuse_unnoted,
)
from ..from_file.file_weights import refuse_to_save, with_mapped
from ..runs.status import plan_sentence
from ..runs.wish import Wish
from ..seams import host
from ..seams.gguf import is_bytes, patches_aside
from ..seams.lost_patches import none_lost
from .holding import Claim, Holding, Immovable, holding_of
from .room import granted_by_host, size_with, whole_size

KEY = "blockswap"
_FILES = "blockswap_files"


def keep_file_units(model: Any, files: FileUnits) -> None:
    """Notes on a shared model object that its units are in a file: nothing there can be moved."""
    setattr(model, _FILES, files)
    for name in files.names:
        for module in files.root.get_submodule(name).modules():
            Immovable(module)


def files_of(model: Any) -> FileUnits | None:
    files: FileUnits | None = vars(model).get(_FILES)
    return files


def transformer_of(patcher: Any) -> Any:
    """The transformer in a patcher's model. Raises ModelError where there is none."""
    root = getattr(getattr(patcher, "model", None), "diffusion_model", None)
    if root is None:
        raise ModelError(
            f"a {type(patcher).__name__} was given, which has no diffusion model: connect the "
            "MODEL of a Wan checkpoint or another transformer"
        )
    return root


def wish_of(patcher: Any) -> Wish | None:
    """What was asked for a patcher, if anything."""
    wish: Wish | None = patcher.get_attachment(KEY)
    return wish


class Overrides:
    """Stands in front of the methods of one patcher, which it does not keep alive."""

    names: tuple[str, ...] = host.OVERRIDDEN

    def __init__(self, patcher: Any) -> None:
        self._reference = weakref.ref(patcher)
        self._whole = whole_size(patcher.model)

    @property
    def _patcher(self) -> Any:
        return self._reference()

    @property
    def _host(self) -> Any:
        """The patcher's class, whose methods do the work; other packs change it now and then."""
        return type(self._patcher)

    @property
    def _wish(self) -> Wish:
        wish = wish_of(self._patcher)
        assert wish is not None, "overrides are put on patchers that have a wish"
        return wish

    def install(self) -> None:
        patcher = self._patcher
        for name in self.names:
            setattr(patcher, name, getattr(self, name))
        if files_of(patcher.model) is not None:
            # Before newer cores take the weights apart, which some types do not bear.
            patcher.state_dict_for_saving = refuse_to_save
        wish = self._wish
        # How much of the model stays under an automatic plan is what the host answers by loading.
        self._size_to_ask = self._whole
        if not wish.automatic:
            plan = self._plan(patcher.load_device, None)
            self._size_to_ask = size_with(plan, self._whole)

    def plan_text(self) -> str:
        """What will stay, what will be streamed and whether it fits, as far as is known now."""
        device = self._patcher.load_device
        free = self._granted(device)
        try:
            return plan_sentence(self._plan(device, free), free)
        except PlanError as error:  # other models may leave before this one is loaded
            return f"plan: {error}"

    def _granted(self, device: Any) -> int:
        """What the host lets weights take where it sets no limit."""
        return granted_by_host(device, 0)

    def model_size(self) -> int:
        """The bytes the host is to find room for: weights that it or we put on the device."""
        patcher = self._patcher
        holding = holding_of(patcher.model)
        if holding is not None and holding.claim == self._claim(holding.claim.device):
            return size_with(holding.plan, self._whole)
        return self._size_to_ask

    def get_key_patches(self, *args: Any, **kwargs: Any) -> dict[str, list[Any]]:
        """Weights for a merge into another model; those in a file are on meta between runs."""
        patcher = self._patcher
        try:
            found = self._host.get_key_patches(patcher, *args, **kwargs)
        except AttributeError as error:
            if not any(map(is_bytes, patcher.model.parameters())):
                raise
            raise ModelError(
                f"a GGUF model was given as the second of a merge, and its pack does not hand its "
                f"weights out ({error}): make it the first, or load the second from another format"
            ) from error
        return with_mapped(patcher.model, found)

    def get_ram_usage(self) -> int:
        """Streamed or not, the whole model is in host memory."""
        return self._whole

    def _load_list(self, *args: Any, **kwargs: Any) -> list[Any]:
        entries = host.load_list(self._patcher, *args, **kwargs)
        holding = holding_of(self._patcher.model)
        if holding is None:
            return entries
        held = holding.modules
        return [e for e in entries if any(m in held for m in host.modules_in(e)) == holding.taking]

    def patch_weight_to_device(self, key: str, *args: Any, **kwargs: Any) -> Any:
        patcher = self._patcher
        holding = holding_of(patcher.model)
        if holding is not None and holding.taking and holding.files is not None:
            return self._note(holding, key, *args, **kwargs)
        result = self._host.patch_weight_to_device(patcher, key, *args, **kwargs)
        if holding is not None and holding.taking:
            # The host patches on the compute device; weights of streamed units rest in RAM.
            host.bring_to_host_memory(patcher, key)
        return result

    def _note(self, holding: Holding, key: str, *args: Any, **kwargs: Any) -> Any:
        """A weight in the file that the host would patch at once."""
        patcher = self._patcher
        if key not in patcher.patches:
            return None
        if is_bytes(host.weight_of(patcher.model, key)):
            holding.noted[key] = None  # its pack notes the patches on it
            return self._host.patch_weight_to_device(patcher, key, *args, **kwargs)
        holding.noted[key] = host.note_patch(patcher, key)
        return None

    def patch_hooks(self, hooks: Any) -> Any:
        """Scheduled patches (hooks) are written to the weights between two calls of the model."""
        patcher = self._patcher
        self._expect_writes(hooks is not None and bool(patcher.get_combined_hook_patches(hooks)))
        return self._host.patch_hooks(patcher, hooks)

    def unpatch_hooks(self, *args: Any, **kwargs: Any) -> Any:
        self._expect_writes(bool(self._patcher.hook_backup))
        return self._host.unpatch_hooks(self._patcher, *args, **kwargs)

    def _expect_writes(self, expected: bool) -> None:
        holding = holding_of(self._patcher.model)
        if not expected or holding is None or holding.swap is None:
            return
        if holding.files is not None:
            raise ModelError(
                "hooks were to change weights of blocks that are streamed from their file, and a "
                "file is never written: load the model with ComfyUI's own loader and put WanVideo "
                "Block Swap behind it"
            )
        holding.swap.forget_slots()

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
        patcher = self._patcher
        if unpatch_weights:
            release(patcher.model)
        return self._host.unpatch_model(patcher, device_to, unpatch_weights)

    def partially_load(
        self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> Any:
        patcher = self._patcher
        model = patcher.model
        holding = holding_of(model)
        if holding is not None and holding.claim == self._claim(device_to):
            holding.resume(patcher, self._wish.node_id)
        elif host.loaded_patches(model) is not None:
            # Loaded for a clone that asked for something else: the host starts afresh.
            used = host.loaded_bytes(model)
            patcher.unpatch_model(patcher.offload_device, unpatch_weights=True)
            extra_memory += used
        return self._host.partially_load(
            patcher, device_to, extra_memory, force_patch_weights=force_patch_weights
        )

    def load(
        self,
        device_to: Any = None,
        lowvram_model_memory: float = 0,
        force_patch_weights: bool = False,
        full_load: bool = False,
    ) -> Any:
        patcher = self._patcher
        if device_to is None:  # weights are patched where they lie, nothing is loaded
            return self._load(device_to, lowvram_model_memory, force_patch_weights, full_load)
        granted = granted_by_host(device_to, lowvram_model_memory)
        try:
            holding = holding_of(patcher.model) or self._take(device_to, granted)
            fits = full_load or holding.plan.device_bytes <= granted
            room = max(lowvram_model_memory - holding.own_bytes, 0.1)
            with holding.at_work(), none_lost():
                result = self._load(device_to, room, force_patch_weights, fits)
            if not fits:  # else the host has counted `model_size()`
                host.add_loaded_bytes(patcher.model, holding.own_bytes)
            holding.open(transformer_of(patcher))
        except BaseException:
            release(patcher.model)
            raise
        return result

    def _load(self, device: Any, room: float, force: bool, whole: bool) -> Any:
        """The host's loading. By keyword: packs stand in front of it and know the names."""
        return self._host.load(
            self._patcher,
            device,
            lowvram_model_memory=room,
            force_patch_weights=force,
            full_load=whole,
        )

    def _claim(self, device: Any) -> Claim:
        patcher = self._patcher
        replaced = tuple(
            (name, id(value))
            for name, value in sorted(patcher.object_patches.items())
            if name.startswith("diffusion_model")
        )
        return Claim(self._wish.args, device, patcher.patches_uuid, replaced)

    def _take(self, device: Any, granted: int) -> Holding:
        """Plans, takes the streamed units out of the host's care, and lets it patch them."""
        patcher = self._patcher
        claim = self._claim(device)
        plan = self._plan(device, granted)
        files = files_of(patcher.model)
        holding = Holding(patcher.model, claim, plan, files)
        holding.hold(patcher, self._wish.node_id)
        if holding.modules:
            # The host loads in two turns; what other nodes hang on loading belongs to the second.
            # Weights in memory are patched for good; of those in a file the host only notes what is
            # to be patched, as it does for weights that it finds no room for.
            room = 1e32 if files is None else 1e-3
            turn = holding.at_work(taking=True)
            with turn, host.without_callbacks(patcher), none_lost():
                self._load(device, room, False, False)
        if files is not None:
            _settle_notes(holding, patcher)
        return holding

    def _plan(self, device: Any, granted: int | None) -> SwapPlan:
        patcher = self._patcher
        args, granted = self._wish.within(granted)
        files, root = files_of(patcher.model), transformer_of(patcher)
        with patches_aside(root):
            if files is not None:
                return plan_file_units(files, args, device=device, granted_bytes=granted)
            mapped = self._mapped(root)
            return plan_units(root, args, device=device, granted_bytes=granted, mapped=mapped)

    def _mapped(self, root: Any) -> Mapped | None:
        """How weights that the host has mapped from their file arrive, where it maps them."""
        return None


def _settle_notes(holding: Holding, patcher: Any) -> None:
    """What the host has noted on modules in a file is applied on arrival."""
    asked, noted, now = set(), set(holding.noted), {}
    for path, module in patcher.model.named_modules():
        if module in holding.modules:
            asked.update({f"{path}.weight", f"{path}.bias"} & patcher.patches.keys())
            noted.update(host.noted_keys(module))
            now[path] = module
    refuse_unnoted(asked, noted)
    for module in holding.modules:
        if getattr(module, "weight_function", None) or getattr(module, "bias_function", None):
            patch_on_arrival(module)
        elif not patcher.force_cast_weights:
            forget_patches(module)
    for path, patches in groupby(sorted(holding.noted), lambda key: key.rpartition(".")[0]):
        found = {key.rpartition(".")[2]: holding.noted[key] for key in patches}
        hung = {name: as_loaded(patch, type(patcher)) for name, patch in found.items() if patch}
        if hung:
            patch_while_running(now[path], hung)
    hang_where_read(holding.modules)


def plan_text(patcher: Any) -> str:
    """The plan of a clone with block swap, before it is loaded."""
    overrides: Overrides = patcher.load.__self__
    return overrides.plan_text()


def release(model: Any) -> None:
    """Closes the holding on a model, if there is one."""
    holding = holding_of(model)
    if holding is not None:
        holding.close()
