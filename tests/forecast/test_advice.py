"""The way out of a phase that does not fit: never what was done already, always what suffices."""

from itertools import product

import pytest

from blockswap import Workload
from blockswap.forecast import find_model
from blockswap.forecast.advice import way_out
from blockswap.predict import Companions

SUBJECT = find_model("wan2.1-t2v-1.3b").subject
CLIP = Workload(256, 256, 5)


@pytest.mark.parametrize(("tiled", "dtype"), [*product([False, True], ["float32", "bfloat16"])])
@pytest.mark.parametrize("share", [0.0, 0.6, 0.99])
def test_the_vae_is_told_only_what_was_not_done_and_suffices(
    tiled: bool, dtype: str, share: float
) -> None:
    beside = Companions(vae_tiled=tiled, vae_dtype=dtype)  # type: ignore[arg-type]
    *_, phase = SUBJECT.generation(CLIP, beside).phases(0)
    room = int(share * phase.peak_bytes)
    said = way_out(phase, room, SUBJECT, CLIP, beside)
    assert not (tiled and "tiles" in said)
    assert not (dtype == "bfloat16" and "bfloat16" in said)
    if "on the CPU" not in said:
        done = Companions(
            vae_tiled=tiled or "--vae-tiled" in said,
            vae_dtype="bfloat16" if "--vae bfloat16" in said else dtype,  # type: ignore[arg-type]
        )
        assert [*SUBJECT.generation(CLIP, done).phases(0)][-1].peak_bytes <= room
    if share == 0.0 or (tiled and dtype == "bfloat16"):
        assert "on the CPU" in said


def test_the_text_encoder_is_told_to_stream_only_where_that_suffices() -> None:
    for dtype, room, enough in (("bfloat16", 8, True), ("bfloat16", 1, False), ("float8", 4, True)):
        beside = Companions(text_encoder_dtype=dtype)  # type: ignore[arg-type]
        phase = next(SUBJECT.generation(CLIP, beside).phases(0))
        said = way_out(phase, room << 30, SUBJECT, CLIP, beside)
        assert ("--text-encoder streamed" in said) is enough
        assert ("--text-encoder cpu" in said) is not enough
