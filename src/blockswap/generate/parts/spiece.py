"""The tokenizer of T5 and UMT5 from a SentencePiece model's bytes, as repackaged encoders carry it.

A SentencePiece model is a protocol buffer of pieces with scores, and of how text is made ready.
Only its Unigram kind is read, which is what Google trained both with; the fields are those of
sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import CheckpointError

_UNIGRAM = 1
_TENSOR = "spiece_model"


def tokenizer_of(encoder: Path) -> Any:
    """The tokenizer that lies in an encoder's file. Raises CheckpointError where it is damaged."""
    from safetensors import safe_open

    with safe_open(encoder, framework="pt") as file:
        data = bytes(file.get_tensor(_TENSOR).contiguous().view(-1).numpy().tobytes())
    try:
        return _tokenizer(data)
    except (IndexError, ValueError, KeyError, struct.error) as error:
        raise CheckpointError(
            f"the tokenizer that {encoder} carries cannot be read ({error}): download the file "
            "again, or give --tokenizer FOLDER"
        ) from error


def _tokenizer(data: bytes) -> Any:
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

    pieces, charsmap = _model(data)
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


def _model(data: bytes) -> tuple[list[tuple[str, float]], bytes]:
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
