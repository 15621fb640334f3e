"""Predictions kept on disk: one file per question, and when one is worked out anew.

One small JSON file for each question, named by a hash of the question. The question holds all that
the answer depends on, so a file is never out of date, only no longer asked for. Needs no torch.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..cache import cache_folder, load_json, write_json_atomically

__all__ = ["cache_folder", "count", "counts", "library_versions", "remembered"]

_SCHEMA = 3  # raised when the way of predicting changes, or what is written down


def library_versions(*names: str) -> dict[str, str]:
    """Installed version of each distribution, without importing it; "" where there is none."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def remembered(
    question: Mapping[str, Any],
    answer: Callable[[], Any],
    value_of: Callable[[Any], Any] = lambda kept: kept,
) -> Any:
    """`value_of` the answer to `question` (both JSON) from the cache, or worked out and kept there.

    A file that cannot be read or written never fails a prediction: a warning says so in a sentence.
    Nor does one whose answer `value_of` refuses with KeyError, TypeError or ValueError.
    """
    asked = {"schema": _SCHEMA, **question}
    path = _path_of(asked)
    found = _read(path, asked, value_of)
    if found is None:
        fresh = answer()
        _write(path, {"question": asked, "answer": fresh})
        found = value_of(fresh)
    return found


def counts(kept: Mapping[str, Any], names: Iterable[str]) -> dict[str, int]:
    """The counts of just these names. Raises ValueError or TypeError where they are not."""
    if set(kept) != (wanted := set(names)):
        raise ValueError(f"it says {len(kept)} figures instead of {len(wanted)}")
    return {name: count(value) for name, value in kept.items()}


def count(value: Any) -> int:
    """A count of bytes or FLOPs as kept. Raises ValueError where it is none."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _path_of(asked: Mapping[str, Any]) -> Path:
    text = json.dumps(asked, sort_keys=True)
    return cache_folder() / "predictions" / f"{sha256(text.encode()).hexdigest()[:32]}.json"


def _read(path: Path, asked: Mapping[str, Any], value_of: Callable[[Any], Any]) -> Any | None:
    try:
        kept = load_json(path)
        if kept["question"] != json.loads(json.dumps(asked)):
            raise ValueError("it answers another question")
        return value_of(kept["answer"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _warn(
            f"the kept prediction {path} cannot be used ({repr(error)[:120]}): "
            "it is worked out anew"
        )
        return None


def _write(path: Path, kept: Mapping[str, Any]) -> None:
    try:
        write_json_atomically(path, kept)
    except OSError as error:
        _warn(f"a prediction could not be kept and is worked out anew each time: {error}")


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=4)
