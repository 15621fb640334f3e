"""Whether a model can run in pieces at all: its class is known, and gives the same both ways.

A small model of the class, with two or three blocks and random weights, runs two steps whole and in
pieces, once in a process for each kind of configuration. Another version of the host library whose
forward does something else is found that way, and the model runs whole, with a sentence.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..adapters.families import bare, unit_modules
from ..ambient import as_at_start
from .install import Pieces
from .onlookers import is_known, why_before, why_whole

_HEADS, _HEAD_DIM, _TEXT, _IMAGE = 2, 12, 16, 20
_TOLERANCE = 1e-4  # of the largest value, in fp32: far above another order of adding, far below 1
_found: dict[tuple[Any, ...], str | None] = {}


def why_never(model: torch.nn.Module) -> str | None:
    """Why a model as it stands cannot run in pieces; None where it can."""
    root = bare(model)
    if not is_known(root):
        return f"{type(root).__name__} is no model that is known in pieces"
    for unit in unit_modules(root):
        if unit.kind in ("block", "vace"):
            why = why_before(unit.module) or why_whole(unit.module)
            if why is not None:
                return f"{unit.name}: {why}"
    return trial_of(root)


def trial_of(root: Any) -> str | None:
    """What the trial of the model's class has found; None where both ways are the same.

    Also None for a class that is not known: its blocks are tried by nobody but their own class's
    models.
    """
    if not is_known(root):
        return None
    config = _small(root.config)
    key = (type(root), type(root).forward, *(_forwards(root)), *sorted(map(str, config.items())))
    if key not in _found:
        _found[key] = _try(type(root), config)
    return _found[key]


def _forwards(root: Any) -> tuple[Any, ...]:
    """The blocks' own forwards: one that was replaced is tried anew."""
    return tuple(dict.fromkeys(type(unit.module).forward for unit in unit_modules(root)))


def _small(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same kind of model with as few and as narrow layers as will do."""
    small = {name: value for name, value in config.items() if not name.startswith("_")}
    small |= {"num_layers": 2, "num_attention_heads": _HEADS, "attention_head_dim": _HEAD_DIM}
    small |= {"ffn_dim": 32, "freq_dim": 16, "text_dim": _TEXT, "rope_max_seq_len": 64}
    small |= {"patch_size": (1, 2, 2)}
    if small.get("image_dim") is not None:
        small |= {"image_dim": _IMAGE, "added_kv_proj_dim": _HEADS * _HEAD_DIM}
    if small.get("pos_embed_seq_len") is not None:
        small |= {"pos_embed_seq_len": 8}
    if "vace_layers" in small:
        small |= {"vace_layers": [0, 1]}
    return small


@as_at_start()
def _try(kind: Any, config: Mapping[str, Any]) -> str | None:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        model = kind(**config).eval()
        given = _inputs(config)
        whole = _two_steps(model, given)
        said: list[str] = []
        pieces = Pieces(model, 64, said.append)
        try:
            cut = _two_steps(model, given)
        except Exception as raised:  # noqa: BLE001 - a forward that is not known may do anything
            return f"a small {kind.__name__} cannot run in pieces ({raised!r:.80})"
        finally:
            pieces.remove()
    if said:
        return said[0]
    most = float(whole.abs().max())
    error = float((whole - cut).abs().max())
    if not error <= _TOLERANCE * most:
        return (
            f"a small {kind.__name__} gave another result in pieces than whole (off by "
            f"{error / most:.1e} of the largest value), so this version's forward is not known"
        )
    return None


def _two_steps(model: Any, given: Mapping[str, Any]) -> torch.Tensor:
    first = model(**given)[0]
    channels = given["hidden_states"].shape[1]
    again = torch.cat([first, first], dim=1).repeat(1, channels, 1, 1, 1)[:, :channels]
    return torch.cat([first, model(**{**given, "hidden_states": again})[0]])


def _inputs(config: Mapping[str, Any]) -> dict[str, Any]:
    """150 tokens; for a model with 48 channels a timestep for each."""
    frames, side = 6, 10
    tokens = frames * (side // 2) ** 2
    given: dict[str, Any] = {
        "hidden_states": torch.randn(1, config["in_channels"], frames, side, side),
        "timestep": torch.tensor([400]),
        "encoder_hidden_states": torch.randn(1, 512, _TEXT),
        "return_dict": False,
    }
    if config["out_channels"] == 48:
        given["timestep"] = torch.tensor([[0.0] * (tokens // 4) + [400.0] * (tokens - tokens // 4)])
    if config.get("image_dim") is not None:
        images = 1 if config.get("pos_embed_seq_len") is None else 2
        given["encoder_hidden_states_image"] = torch.randn(images, 4, _IMAGE)
    if "vace_layers" in config:
        given["control_hidden_states"] = torch.randn(
            1, config["vace_in_channels"], frames, side, side
        )
    return given
