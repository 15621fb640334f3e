"""Files that lie, each with the words its refusal must contain."""

import json
import struct
from collections.abc import Iterator

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
TEXT = json.dumps(F32)
WORD = b"\0" * 4


def packed(header: object, data: bytes = b"") -> bytes:
    """A file with this header (an object, or the very bytes) and this data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def one(**changed: object) -> bytes:
    """A file of one float32 element whose description was tampered with."""
    return packed({"a": {**F32, **changed}}, WORD)


def without(field: str) -> bytes:
    return packed({"a": {key: value for key, value in F32.items() if key != field}}, WORD)


def corpus() -> Iterator[tuple[str, bytes, str]]:
    """(what is wrong, the file, part of the message)."""
    yield "empty file", b"", "is empty"
    yield "seven bytes", b"\1\0\0\0\0\0\0", "7 bytes, too few"
    yield "length beyond the file", struct.pack("<Q", 100) + b"{}", "ends after 10"
    yield "length above the cap", struct.pack("<Q", 100_000_001) + b"{}", "100,000,001 bytes, more"
    yield "length of 2^64 - 1", b"\xff" * 8 + b"{}", "does not begin as a safetensors file"
    yield "header not UTF-8", packed(b'{"\xff":1}'), "is not UTF-8"
    yield "header not JSON", packed(b'{"a":'), "is not JSON"
    yield "header empty", packed(b""), "is not JSON"
    yield "bytes after the JSON", packed(b"{}\0"), "is not JSON"
    yield "header an array", packed(b"[]"), "array instead of an object"
    yield "header a number", packed(b"3"), "number instead of an object"
    yield "header null", packed(b"null"), "null instead of an object"
    yield "tensor twice", packed(f'{{"a":{TEXT},"a":{TEXT}}}'.encode(), WORD), "says 'a' twice"
    yield "field twice", packed(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "says 'dtype' twice"
    yield "NaN", packed(b'{"a":NaN}'), "holds NaN"
    yield "Infinity", packed(b'{"a":-Infinity}'), "holds -Infinity"
    yield "number beyond a double", packed(b'{"a":1e999}'), "too large for a double"
    yield "million digits", packed(b'{"a":1' + b"0" * 10**6 + b"}"), "too large for a double"
    yield "half a surrogate in a name", packed(b'{"\\ud800":1}'), "half a surrogate"
    yield "half a surrogate in a value", packed(b'{"a":"\\udfff"}'), "half a surrogate"
    yield "nesting bomb", packed(b'{"a":' + b"[" * 10**6 + b"}"), "nested too deeply"
    yield "metadata a list", packed({"__metadata__": []}), "no object of texts"
    yield "metadata of a number", packed({"__metadata__": {"k": 1}}), "entry 'k' is no text"
    yield "tensor a list", packed({"a": ["F32", [1], [0, 4]]}, WORD), "not described by an object"
    yield "no dtype", without("dtype"), "has no 'dtype'"
    yield "no shape", without("shape"), "has no 'shape'"
    yield "no offsets", without("data_offsets"), "has no 'data_offsets'"
    yield "structure in a strange field", one(x={"y": 1}), "structure in the unknown field 'x'"
    yield "unknown dtype", one(dtype="F128"), "element type 'F128'"
    yield "lower-case dtype", one(dtype="f32"), "element type 'f32'"
    yield "dtype no text", one(dtype=["F32"]), "element type ['F32']"
    yield "four-bit dtype", one(dtype="F4", shape=[8]), "element type 'F4'"
    yield "shape no list", one(shape=1), "a shape that is no list"
    yield "negative extent", one(shape=[-1]), "has -1 in its shape"
    yield "extent a truth value", one(shape=[True]), "has True in its shape"
    yield "extent a fraction", one(shape=[1.0]), "has 1.0 in its shape"
    yield "extent a text", one(shape=["1"]), "has '1' in its shape"
    yield "extent beyond 64 bits", one(shape=[2**64]), "in its shape"
    yield "offset minus zero", packed(TEXT.replace("[0,", "[-0,").encode()), "is not described"
    yield "one offset", one(data_offsets=[4]), "1 data_offsets instead of 2"
    yield "three offsets", one(data_offsets=[0, 4, 4]), "3 data_offsets instead of 2"
    yield "end before begin", one(data_offsets=[4, 0]), "ends before it at 0"
    yield "end beyond the file", one(data_offsets=[0, 8]), "ends at data byte 8"
    yield "size and range differ", one(shape=[2]), "needs 8 bytes and has 4"
    yield "product overflows", one(shape=[2**32, 2**32]), "larger than any address"
    yield "bits overflow", one(shape=[2**61]), "larger than any address"
    yield "overflow before a zero", one(shape=[2**63, 2, 0]), "larger than any address"
    hole = {"a": F32, "b": {**F32, "data_offsets": [8, 12]}}
    yield "hole", packed(hole, WORD * 3), "hole of 4 bytes"
    late = {"a": {**F32, "data_offsets": [4, 8]}}
    yield "hole at the start", packed(late, WORD * 2), "hole of 4 bytes"
    double = {"a": {**F32, "shape": [2], "data_offsets": [0, 8]}, "b": dict(F32)}
    yield "overlap", packed(double, WORD * 2), "overlaps"
    yield "same bytes twice", packed({"a": F32, "b": F32}, WORD), "overlaps 'a' by 4 bytes"
    yield "trailing bytes", packed({"a": F32}, WORD + b"x"), "1 bytes behind its last tensor"
    yield "data without tensors", packed({}, WORD), "4 bytes behind its last tensor"
    yield "pickle in a zip", b"PK\x03\x04" + b"\x08\x08" * 300, "zip archive"
    yield "old pickle", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", "a pickle"
    yield "GGUF", b"GGUF\3\0\0\0" + b"\1\0" * 20, "a GGUF file"
    yield (
        "git-lfs pointer",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "git lfs pull",
    )
    yield "web page", b"<!DOCTYPE html><html><body>login</body></html>", "a web page"
    yield "web page after a blank", b"\n\n  <html><body>login</body></html>", "a web page"
    yield "JSON text", b'{"error": "access to this model is restricted"}', "a JSON text"
    yield "NumPy array", b"\x93NUMPY\1\0v\0{'descr': '<f4'}", "a NumPy array"
    yield "PNG", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "but a picture"
    yield "WebP", b"RIFF\x24\0\0\0WEBPVP8 " + b"\0" * 40, "but a picture"
    yield "AVIF", b"\0\0\0\x1cftypavif" + b"\0" * 40, "but a picture"
    yield "MP4", b"\0\0\0\x20ftypisom" + b"\0" * 40, "but a video or a sound"
    yield "WAV", b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 40, "but a video or a sound"
    yield "PDF", b"%PDF-1.7\n%\xe2\xe3", "but a PDF document"
    yield "prompts", "a red ball\nein rüstiger Hund\n".encode(), "but a text"
    yield "random bytes", bytes(range(255, 200, -1)), "does not begin as a safetensors file"
    spelt = int.from_bytes(b"BM\1\0\0\0\0\0", "little")
    yield "cut short, spelling a magic", struct.pack("<Q", spelt) + b'{"a":', "is cut short"
    yield "unfinished download", b"\0" * 4096, "download did not finish"


CORPUS = tuple(corpus())
