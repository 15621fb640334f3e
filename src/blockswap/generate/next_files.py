"""What is read ahead while a phase ends: the next one's files, within what memory is left.

encode     ... the last block of the last prompt    CLIP, VAE and transformers come next
sample     ... the last block of the last step      the VAE comes next
"""

from collections.abc import Iterator, Mapping, Sequence

from ..store.ahead import Stretch, first_of
from .job import Job
from .parts.components import WEIGHTS, Part

# About what a disk brings while one model leaves and the next one is opened. More is slower: what
# goes through the page cache is copied by cores that compute, and direct reads are not.
MOST_BYTES = 256 * 2**20


def files_ahead(
    job: Job, left: Mapping[str, int], reads: Sequence[Stretch]
) -> dict[str, tuple[Stretch, ...]]:
    """By phase. `left` is the host memory that each leaves; `reads` those of the transformers."""
    coming: list[Stretch] = []
    seeing = job.image_encoder()
    if seeing is not None:
        coming += _whole(seeing)
    if job.conditioned:
        coming += _whole(job.parts.vae)
    after = {"encode": [*coming, *reads], "sample": list(_whole(job.parts.vae))}
    return {phase: first_of(files, min(MOST_BYTES, left[phase])) for phase, files in after.items()}


def _whole(part: Part) -> Iterator[Stretch]:
    if not part.config.get("weightless"):
        for file in part.files:
            if file.suffix in WEIGHTS:
                yield Stretch(file, 0, file.stat().st_size)
