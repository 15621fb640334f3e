"""Other formats: this module owns recognising what a file is when it is not safetensors."""

import codecs

SNIFFED_BYTES = 512

_MODEL = "give a model's file"
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"8BPS")
_MEDIA = (b"\x1a\x45\xdf\xa3", b"OggS", b"fLaC", b"ID3", b"\0\0\1\xba")

# (how the file begins, what it is and what to do about it)
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "a GGUF file: give it a name that ends with .gguf"),
    (b"GGML", "a GGML file: use a safetensors checkpoint of the same model"),
    (b"PK\x03\x04", "a zip archive, as torch.save writes (.pt, .pth, .ckpt): convert it first"),
    (b"\x80\x02", "a pickle, as old torch.save writes (.pt, .pth, .ckpt): convert it first"),
    (b"\x80\x03", "a pickle (.pt, .pth, .ckpt, .bin): convert it to safetensors first"),
    (b"\x80\x04", "a pickle (.pt, .pth, .ckpt, .bin): convert it to safetensors first"),
    (b"\x80\x05", "a pickle (.pt, .pth, .ckpt, .bin): convert it to safetensors first"),
    (
        b"version https://git-lfs.github.com",
        "a git-lfs pointer, not the weights: run `git lfs pull`",
    ),
    (b"\x93NUMPY", "a NumPy array: use a safetensors checkpoint"),
    (b"\x89HDF\r\n", "an HDF5 file: use a safetensors checkpoint"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!", "a rar archive: unpack it first"),
    (b"%PDF", f"a PDF document: {_MODEL}"),
    *((magic, f"a picture: {_MODEL}") for magic in _PICTURES),
    *((magic, f"a video or a sound: {_MODEL}") for magic in _MEDIA),
)
_HTML = (b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body")


def foreign_format(head: bytes) -> str | None:
    """What a file is whose first bytes are `head`, and what to do; None when it is not known.

    Meant for files that have already failed as safetensors: a well-formed file whose header
    length happens to spell a magic number never gets here.
    """
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return what
    if len(head) > 8 and not any(head):
        return "all zeros where it begins: the download did not finish, fetch it again"
    return _text(head) or _container(head)


def _text(head: bytes) -> str | None:
    if b"\0" in head[:8]:  # the length of a real header is never eight characters
        return None
    begin = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if begin.startswith(_HTML):
        return "a web page, not the weights: the download needs a login or another address"
    if begin.startswith(b"{"):
        return "a JSON text, not the weights: give the .safetensors file or its folder"
    try:  # a letter may be cut in two where the head ends
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None
    plain = all(letter.isprintable() or letter.isspace() for letter in text)
    return f"a text: {_MODEL}" if plain and text else None


def _container(head: bytes) -> str | None:
    """Pictures, videos and sounds that share their first bytes."""
    pictures = (b"avif", b"heic", b"mif1") if head[4:8] == b"ftyp" else (b"WEBP",)
    if head[4:8] != b"ftyp" and not head.startswith(b"RIFF"):
        return None
    what = "a picture" if head[8:12] in pictures else "a video or a sound"
    return f"{what}: {_MODEL}"
