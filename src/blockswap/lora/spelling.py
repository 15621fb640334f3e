"""How programs spell a LoRA's keys: which layer a key is for, and which part of its adapter.

diffusion_model.blocks.0.self_attn.q.lora_A.weight       original names, as most files have
transformer.blocks.0.attn1.to_q.lora_A.weight            diffusers
base_model.model.blocks.0.attn1.to_q.lora_A.weight       PEFT
lora_unet_blocks_0_self_attn_q.lora_down.weight          kohya, musubi; lycoris_ likewise
lora_unet__blocks_0_self_attn_q.lora_down.weight         VideoX-Fun
pipe.dit.blocks.0.self_attn.q.lora_A.default.weight      DiffSynth
blocks.0.self_attn.q.lora_down.weight                    no prefix
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..layout.geometry import to_diffusers_key, to_original_key

_DOTTED = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.",
           "model.", "unet.", "pipe.dit.", "dit.", "module.", "_orig_mod.")  # fmt: skip
UNDERSCORED = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")
PEFT_PREFIX = "base_model.model."
# (end of a key, part of the adapter)
_ENDS = (
    (r"lora_A((\.[^.]+)?\.weight)?", "down"),
    (r"lora_B((\.[^.]+)?\.weight)?", "up"),
    (r"lora_B(\.[^.]+)?\.bias", "up_bias"),
    (r"lora_down\.weight", "down"),
    (r"lora_up\.weight", "up"),
    (r"lora_up\.bias", "up_bias"),
    (r"lora\.down\.weight", "down"),
    (r"lora\.up\.weight", "up"),
    (r"lora_linear_layer\.down\.weight", "down"),
    (r"lora_linear_layer\.up\.weight", "up"),
    (r"alpha", "alpha"),
    (r"dora_scale", "magnitude"),
    (r"lora_magnitude_vector(\.[^.]+)?(\.weight)?", "magnitude"),
    (r"(?P<own>hada_w[12]_[ab](?=$))", ""),
    (r"(?P<own>lokr_w[12](_[ab])?(?=$))", ""),
    (r"diff", "diff"),
    (r"diff_b", "diff_b"),
    (r"w_norm", "diff"),
    (r"b_norm", "diff_b"),
)
_TABLE = re.compile(r"\.diff_m$")  # LightX2V: of a block's or the head's table of shifts
_KEYS = tuple((re.compile(rf"(?P<path>.+)\.{end}"), part) for end, part in _ENDS)
# Adapters that are known and not read, by what marks their keys.
_FOREIGN = (
    (r"\.(qweight|wscales|wzeros|smooth(_factor)?|proj_(down|up))$", "a Nunchaku (SVDQuant) LoRA"),
    (r"\.(oft_|boft_)", "an OFT adapter"),
    (r"\.(a1|a2|b1|b2)\.weight$", "a GLoRA"),
    (r"\.(lora_mid\.weight|hada_t[12]|lokr_t[12])$", "a LoCon for convolutions (Tucker form)"),
    (r"\.(lora_embedding_[AB])", "a LoRA of an embedding"),
    (r"\.(ia3_l|vera_lambda_[bd]|randlora_)", "an (IA)3, VeRA or RandLoRA adapter"),
    (r"\.(set_weight|reshape_weight)$", "a patch that replaces or reshapes weights"),
    (r"\.(on_input|on_output|last_weight)$", "a LyCORIS (IA)3 adapter"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PartKey:
    """A key in two: `path` names the layer, as the file does; `part` is what of its adapter."""

    path: str
    part: str


def read_key(name: str) -> PartKey | None:
    """Which layer's which part a key of a LoRA file is; None for what no adapter calls so."""
    name = _TABLE.sub(".modulation.diff", name)
    for pattern, part in _KEYS:
        match = pattern.fullmatch(name)
        if match:
            return PartKey(match["path"], part or match["own"])
    return None


def foreign_adapter(names: Iterable[str]) -> tuple[str, str] | None:
    """A key that marks an adapter which is known and not read, and what that is called."""
    for name in names:
        for pattern, what in _FOREIGN:
            if re.search(pattern, name):
                return name, what
    return None


def _bare_forms(path: str) -> Iterator[str]:
    """`path`, and what is left as one prefix after the other is taken off."""
    yield path
    for prefix in (*_DOTTED, *UNDERSCORED):
        if path.startswith(prefix):
            yield from _bare_forms(path.removeprefix(prefix))
            return


class Names:
    """The model's parameters by every spelling of their layers."""

    def __init__(self, labels: Iterable[str]) -> None:
        self._labels = frozenset(labels)
        self._by_path: dict[str, set[str]] = {}
        for label in self._labels:
            for spelled in {label, to_original_key(label), to_diffusers_key(label)}:
                path = spelled.removesuffix(".weight")
                for form in {path, path.replace(".", "_")}:
                    self._by_path.setdefault(form, set()).add(label)

    def weight(self, path: str) -> str | None:
        """The label of a layer's weight, or of a parameter that is no layer's; None without one."""
        for form in _bare_forms(path):
            found = self._by_path.get(form, set())
            if len(found) == 1:
                return next(iter(found))
        return None

    def bias(self, path: str) -> str | None:
        """The label of a layer's bias."""
        weight = self.weight(path)
        if weight is None or not weight.endswith(".weight"):
            return None
        label = weight.removesuffix("weight") + "bias"
        return label if label in self._labels else None


def layers_of(names: Iterable[str]) -> tuple[Mapping[str, Mapping[str, str]], tuple[str, ...]]:
    """`{layer: {part: key}}` of a file's keys, and the keys that are none of an adapter's.

    A part that comes twice, in two spellings, is among the latter.
    """
    layers: dict[str, dict[str, str]] = {}
    strange = []
    for name in names:
        key = read_key(name)
        if key is None or key.part in layers.setdefault(key.path, {}):
            strange.append(name)
        else:
            layers[key.path][key.part] = name
    return {path: parts for path, parts in layers.items() if parts}, tuple(strange)
