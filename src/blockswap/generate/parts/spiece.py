"""The tokenizer of T5 and UMT5 that an encoder's file carries: a SentencePiece model, or as GGUF.

A SentencePiece model is a protocol buffer of pieces with scores, and of how text is made ready; its
fields are those of sentencepiece_model.proto. A GGUF header has the same pieces as lists. Only the
Unigram kind is read, which is what Google trained both with.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...layout.gguf_header import is_gguf, read_gguf_header, read_gguf_lists
from ...layout.header import read_header

_UNIGRAM = 1
_UNUSED = 5  # of a piece's kinds: ids behind the last piece, up to the rows of the table
_TENSOR = "spiece_model"
_GGUF = "tokenizer.ggml."
Pieces = list[tuple[str, float]]


def carries_tokenizer(encoder: Path) -> bool:
    """Whether an encoder's file has a tokenizer of the kind that is read here."""
    if not is_gguf(encoder):
        single = encoder.is_file() and encoder.suffix == ".safetensors"
        return single and any(t.name == _TENSOR for t in read_header(encoder).tensors)
    return read_gguf_header(encoder).metadata.get(f"{_GGUF}model") == "t5"


def tokenizer_of(encoder: Path) -> Any:
    """The tokenizer that lies in an encoder's file. Raises CheckpointError where it is damaged."""
    try:
        if is_gguf(encoder):
            return _tokenizer(*_in_gguf(encoder))
        return _tokenizer(*_model(_carried(encoder)))
    except (IndexError, ValueError, KeyError, struct.error) as error:
        raise CheckpointError(
            f"the tokenizer that {encoder} carries cannot be read ({error}): download the file "
            "again, or give --tokenizer FOLDER"
        ) from error


def _carried(encoder: Path) -> bytes:
    from safetensors import safe_open

    with safe_open(encoder, framework="pt") as file:
        return bytes(file.get_tensor(_TENSOR).contiguous().view(-1).numpy().tobytes())


def _in_gguf(encoder: Path) -> tuple[Pieces, bytes]:
    names = ("tokens", "scores", "token_type", "precompiled_charsmap")
    lists = read_gguf_lists(encoder, [_GGUF + name for name in names])
    texts, scores, kinds, charsmap = (lists.get(_GGUF + name, ()) for name in names)
    if not len(texts) == len(scores) == len(kinds) > 0:
        raise ValueError(
            f"its {len(texts)} tokens have {len(scores)} scores and {len(kinds)} kinds"
        )
    if read_gguf_header(encoder).metadata.get(f"{_GGUF}add_space_prefix") == "False":
        raise ValueError("it puts no space before a text, as those of T5 and UMT5 do")
    known = len(kinds)
    while known and kinds[known - 1] == _UNUSED:
        known -= 1
    pieces = [(str(t), float(s)) for t, s in zip(texts[:known], scores[:known], strict=True)]
    return pieces, bytes(int(number) & 255 for number in charsmap)


def _tokenizer(pieces: Pieces, charsmap: bytes) -> Any:
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    names = [piece for piece, _ in pieces]
    unknown, end, _ = (names.index(name) for name in ("<unk>", "</s>", "<pad>"))
    words = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback="<0x00>" in names))
    steps = [normalizers.Precompiled(charsmap)] if charsmap else []
    words.normalizer = normalizers.Sequence(
        [*steps, normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    words.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    words.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    words.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def _model(data: bytes) -> tuple[Pieces, bytes]:
    """Pieces with their scores, and the table by which characters are made ready."""
    pieces, charsmap, kind = [], b"", _UNIGRAM
    for number, value in _fields(data):
        if number == 1:
            told = dict(_fields(value))
            pieces.append((told[1].decode(), struct.unpack("<f", told.get(2, bytes(4)))[0]))
        elif number == 2:
            kind = dict(_fields(value)).get(3, _UNIGRAM)
        elif number == 3:
            charsmap = dict(_fields(value)).get(2, b"")
    if kind != _UNIGRAM or not pieces:
        raise ValueError("it is no Unigram model")
    return pieces, charsmap


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer message: numbers, or bytes."""
    at = 0
    while at < len(data):
        key, at = _number(data, at)
        if key & 7 == 0:
            value: Any
            value, at = _number(data, at)
        elif key & 7 == 2:
            size, at = _number(data, at)
            value, at = data[at : at + size], at + size
        elif key & 7 in (1, 5):
            size = 8 if key & 7 == 1 else 4
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"it has a field of kind {key & 7}")
        if at > len(data):
            raise ValueError("it is cut off")
        yield key >> 3, value


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
