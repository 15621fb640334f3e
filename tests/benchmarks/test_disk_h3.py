"""What the MiniMax-H3 benchmark makes of what it measured; the measuring is `make disk-h3`."""

import json
from typing import Any

import pytest
import torch

from benchmarks.disk_h3.how import inputs_for
from benchmarks.disk_h3.tell import report
from benchmarks.disk_h3.what import BLOCKS, CLIPS, MODEL, misses, rows_of
from benchmarks.shared.results import RESULTS


@pytest.fixture
def told() -> dict[str, Any]:
    return dict(json.loads((RESULTS / "disk_h3.json").read_text())["told"])


def test_the_committed_report_is_that_of_the_committed_figures(told: dict[str, Any]) -> None:
    rows = rows_of(told)
    table = report(told, rows).partition("Opened in")[2]  # the machine is another's
    assert (RESULTS / "disk_h3.md").read_text().partition("Opened in")[2] == table
    assert told["streamed"] == {"token_refiner.refiner_blocks": 2, "transformer_blocks": BLOCKS}


def test_each_missed_target_is_a_sentence(told: dict[str, Any]) -> None:
    told["opening"] = 10.5
    bound = rows_of(told)[1].bound
    told["rows"][1]["forwards"] = [bound * 1.2] * 2
    missed = misses(told, rows_of(told))
    assert any("1.200 x its bound" in sentence for sentence in missed)
    assert "opening took 10.5 s" in missed[-1]


def test_the_inputs_are_one_packed_sequence() -> None:
    from diffusers import MiniMaxH3Transformer3DModel

    small = {
        "num_attention_heads": 2, "attention_head_dim": 16, "hidden_size": 24, "num_layers": 2,
        "ffn_dim": 32, "text_dim": 8, "freq_dim": 8, "time_embed_hidden_dim": 24,
        "time_embed_dim": 16, "rope_freq_dim": 2,
    }  # fmt: skip
    model = MiniMaxH3Transformer3DModel(**small).to(torch.bfloat16).eval()
    assert MODEL.family.class_name == type(model).__name__
    for clip in CLIPS:
        given = inputs_for(clip, model.config)
        rows = torch.cat([given[f"{kind}_indices"] for kind in ("text", "audio", "video")])
        assert rows.tolist() == list(range(len(given["token_tags"])))
        with torch.inference_mode():
            frames, sound = model(**given)
        assert frames.shape == given["hidden_states"].shape
        assert sound.shape == given["audio_hidden_states"].shape
