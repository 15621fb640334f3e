"""Blocks of Wan 1.3B, a hundred forwards in 800 MB with the page cache counted: memory stays flat.

Ten blocks in CI. `make disk-30` runs all thirty; it prints the figures, too.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blockswap.layout.geometry import find_variant
from blockswap.synth import synth
from memory_group import MemoryGroup, memory_group, python, require_memory_groups

pytestmark = [pytest.mark.slow, pytest.mark.root]

RUN = Path(__file__).with_name("run_steady.py")
BLOCKS = int(os.environ.get("BLOCKSWAP_STEADY_BLOCKS", "10"))
BLOCK_BYTES = 885 * 2**20 // 10  # and a little
LIMIT = 800 * 10**6
# What the last half may use more than the first tenth: the records of past visits (half a KB each,
# of which a fixed number is kept), and the kernel's rounding. One kept block is 46 times that.
FLAT_BYTES = 2 * 10**6
# Through the page cache: what four readers of 8 MiB have under way, and as much read ahead.
UNDER_WAY_BYTES = 2 * 4 * 8 * 2**20
# Through the page cache a few forwards tell the same: one reads more than the limit.
FORWARDS = {"direct": 100, "buffered": 20}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("steady") / f"wan_{BLOCKS}_blocks.safetensors"
    synth(replace(find_variant("wan2.1-t2v-1.3b"), num_layers=BLOCKS), path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def loaded_digest(checkpoint: Path) -> str:
    """The output of the fully loaded model, outside of any cgroup."""
    (digest,) = run(python(str(RUN), str(checkpoint)))["digests"]
    return str(digest)


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    require_memory_groups()
    with memory_group(LIMIT) as made:
        yield made


def run(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return json.loads(done.stdout)


def allowed(kind: str, mode: str) -> int:
    """By how much a figure may be larger in the last half than in the first tenth."""
    if kind in ("threads", "descriptors"):
        return 0
    cached = mode == "buffered" and kind in ("usage", "page_cache")
    return FLAT_BYTES + UNDER_WAY_BYTES if cached else FLAT_BYTES


@pytest.mark.parametrize("mode", FORWARDS)
def test_a_hundred_forwards_in_800_mb_use_no_more_than_the_first_ones(
    mode: str, checkpoint: Path, group: MemoryGroup, loaded_digest: str
) -> None:
    forwards = FORWARDS[mode]
    told = run(group.command(*python(str(RUN), str(checkpoint), str(forwards), group.folder, mode)))
    samples = told["samples"]
    print(f"\n{mode}, {BLOCKS} blocks: first {samples[0]}, last {samples[-1]}")
    print(f"peak {group.peak_bytes:,} of {LIMIT:,} bytes")
    assert told["digests"] == [loaded_digest]
    assert (told["streamed"], told["mode"]) == (BLOCKS, mode)
    assert told["read_bytes"] >= forwards * BLOCKS * BLOCK_BYTES
    assert len(samples) == forwards
    for kind in samples[0]:
        early = max(sample[kind] for sample in samples[: forwards // 10])
        late = max(sample[kind] for sample in samples[forwards // 2 :])
        assert late <= early + allowed(kind, mode), kind
    # A page cache that grew would have been pushed back at the limit, again and again.
    assert group.times_at_limit == 0
    assert group.peak_bytes < LIMIT - BLOCK_BYTES
