"""Conversion: this module owns the steps of `convert`, and that nothing half done gets the name.

Everything is written to `.NAME.part` beside the target, compared with the source, and renamed.
Memory stays under 100 MB beside torch itself, whatever the size of model and tensors; a weight that
is dequantised is in memory whole.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ArgsError, GeometryError, HeaderError, OutputError, ReadError
from ..layout.checkpoint import Checkpoint
from ..layout.formats import unpacked
from ..layout.geometry import WanGeometry, infer_geometry
from ..layout.header import read_header
from ..layout.prefix import is_padding
from ..layout.shards import SUFFIX, one_file
from ..layout.writing import (
    Meter,
    Progress,
    check_parent,
    check_room,
    put_in_place,
    refuse_occupied,
)
from ..paths import output_path
from ..units import format_bytes
from .cast import PieceReader
from .eight_bits import FP8_SCALED, Eighth
from .journal import Journal
from .order import NewLayout, Placed, new_layout, new_metadata
from .part import open_part, write_part
from .rules import check_request, read_geometry
from .verify import compare, odd_padding, open_files, sources_of
from .weights import AnySources, as_converted, open_sources, packing_of


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written. `resumed_bytes` an earlier, interrupted run had done already; `notes` say
    what may not have been expected."""

    path: Path
    tensors: int
    nbytes: int
    padding_bytes: int
    cast_tensors: int
    resumed_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Work:
    checkpoint: Checkpoint
    layout: NewLayout
    journal: Journal
    target: Path
    overwrite: bool
    eight_bits: bool


def convert(  # noqa: PLR0913 - one keyword for each option of the command of the same name
    source: AnySources,
    target: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    everything: bool = False,
    padding: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Rewrites a checkpoint into one `.safetensors` file laid out for streaming.

    `source` is a file (GGUF: only with a `dtype`), an index or a folder; a list of such a model and
    of modules that go onto it becomes one file. Names and prefix stay (of modules they become the
    model's), and so does metadata: what a config.json says beside it joins it, what says how a file
    was packed goes where it is dequantised. With `dtype` ("bfloat16", "float16", "float32", or
    "fp8_scaled": see `eight_bits`) floating-point tensors of the transformer are cast, but for
    those that official pipelines keep in fp32, unless `everything`, and quantised weights are
    dequantised. `padding` lets every block start at a multiple of 4096 bytes, at the price of
    tensors of zeros that some programs refuse.

    A run that was ended early goes on where it was when it is called again in the same way; the
    target appears only when it is whole and equal to its source. `progress` is called with bytes
    written and compared, and bytes to write and compare. Raises ArgsError, CheckpointError,
    ReadError, and OutputError for all that is wrong with the target.
    """
    path = output_path(target)
    checkpoint = as_converted(open_sources(source), dtype)
    check_request(checkpoint, dtype)
    _check_target(path, checkpoint, overwrite=overwrite)
    geometry, refusal = read_geometry(checkpoint)
    metadata = new_metadata(checkpoint, geometry)
    _check_reading(replace(checkpoint, metadata=metadata, config=one_file(path).config),
                   path, geometry)  # fmt: skip
    layout = new_layout(
        checkpoint, dtype, everything=everything, padding=padding, metadata=metadata
    )
    journal = Journal(path, checkpoint.headers, layout.header)
    work = _Work(checkpoint, layout, journal, path, overwrite, dtype == FP8_SCALED)
    _refuse_source(checkpoint, work.journal)
    _refuse_odd_padding(checkpoint)
    try:
        resumed, stale, lost = _run(work, Meter(2 * layout.nbytes, progress))
    except (ReadError, OutputError):
        raise
    except ArgsError:
        work.journal.discard()  # it would come to the same end again
        raise
    except OSError as error:
        raise _failed(work, error) from error
    notes = [] if stale is None else [f"an unfinished conversion was begun anew: {stale}"]
    notes += (*checkpoint.notes, *lost)
    if refusal:
        notes.append(f"the new file opens no further than its source: {refusal}")
    sources = [tensor.source for tensor in layout.tensors]
    return Converted(
        path=path,
        tensors=len(sources) - sources.count(None),
        nbytes=layout.nbytes,
        padding_bytes=layout.padding_bytes,
        cast_tensors=sum(map(_is_cast, layout.tensors)),
        resumed_bytes=resumed,
        notes=tuple(notes),
    )  # fmt: skip


def _is_cast(tensor: Placed) -> bool:
    """Whether its numbers are others than those of the source: cast, dequantised or quantised."""
    if tensor.source is None:
        return False
    made = tensor.source[1]
    if isinstance(made, Eighth):
        return made.part == "numbers"
    return made.dtype != tensor.dtype or packing_of(made) is not None


def _run(work: _Work, meter: Meter) -> tuple[int, str | None, tuple[str, ...]]:
    journal = work.journal
    done = journal.part.lstat().st_size if os.path.lexists(journal.part) else 0
    check_room(work.target.parent, max(0, work.layout.nbytes - done))
    with open_files(work.checkpoint.headers) as files:
        reader = PieceReader(files)
        with open_part(journal) as part:
            found = write_part(part, journal, work.layout, reader, meter)
            for file in files:
                file.check_unchanged()
            _compare(work, reader, meter)
    try:
        put_in_place(journal.part, work.target, overwrite=work.overwrite)
    except FileExistsError as error:
        raise OutputError(
            f"cannot write {work.target}: a file of this name came while it was made, and stays: "
            "remove it or give --overwrite (in Python overwrite=True), and the same command ends "
            "what was begun"
        ) from error
    journal.remove()
    _sync_folder(work.target.parent)
    return *found, tuple(reader.quantiser.sentences())


def _compare(work: _Work, reader: PieceReader, meter: Meter) -> None:
    try:
        header = read_header(work.journal.part)
        meter.add(header.data_start)
        wanted = sources_of(work.checkpoint, eight_bits=work.eight_bits)
        differences = compare(wanted, header, reader, meter).differences
    except HeaderError as error:
        differences = (str(error),)
    if differences:
        work.journal.discard()
        raise OutputError(
            f"{work.target} was not made: what was written reads back differently "
            f"({differences[0]}), check the disk and the memory of this machine"
        )


def _check_target(target: Path, checkpoint: Checkpoint, *, overwrite: bool) -> None:
    check_parent(target)
    if not target.name.endswith(SUFFIX):
        raise OutputError(f"cannot write {target}: end the file's name with {SUFFIX}")
    for path in checkpoint.paths:
        if target.exists() and os.path.samefile(path, target):
            raise OutputError(
                f"cannot write {target}: it is the source itself, choose another name"
            )
    refuse_occupied(target, overwrite=overwrite)


def _check_reading(made: Checkpoint, target: Path, geometry: WanGeometry | None) -> None:
    """The new file under its name must be read as the source is: a config.json that lies where it
    will lie has a word in it, too."""
    if geometry is None:
        return
    try:
        found = infer_geometry(unpacked(made))
        why = "another model would be read from both"
    except GeometryError as error:
        found, why = None, str(error)
    if found != geometry:
        raise OutputError(
            f"cannot write {target}: the config.json in its folder is another model's ({why}), "
            "choose another name or folder"
        )


def _refuse_odd_padding(checkpoint: Checkpoint) -> None:
    """Padding is not copied, so a tensor that only bears its name must not be there."""
    if not any(is_padding(name) for name in checkpoint.left_out):
        return
    with open_files(checkpoint.headers) as files:
        for sentence in odd_padding(checkpoint, PieceReader(files)):
            raise ArgsError(sentence)


def _refuse_source(checkpoint: Checkpoint, journal: Journal) -> None:
    """A source that lies where the unfinished file will would be overwritten while it is read."""
    for ours in (journal.part, journal.path, journal.fresh):
        if any(ours.exists() and os.path.samefile(path, ours) for path in checkpoint.paths):
            raise OutputError(
                f"cannot write {ours}, where the new file grows: it is the source itself, choose "
                "another name for the target"
            )


def _failed(work: _Work, error: OSError) -> OutputError:
    """A full disk keeps what is there: room can be made, and hours of copying are not lost."""
    part, done = work.journal.part, 0
    with suppress(OSError):
        done = part.stat().st_size
    return OutputError(
        f"cannot write {work.target}: {error.strerror or error} after {format_bytes(done)} of "
        f"{format_bytes(work.layout.nbytes)}, make room and run it again to go on, or remove {part}"
    )


def _sync_folder(folder: Path) -> None:
    """Makes the new name last; systems that cannot open a folder (Windows) do it by themselves."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
