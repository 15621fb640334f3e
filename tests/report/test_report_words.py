"""How figures are spelled."""

import pytest

from blockswap.report.words import count_of, name_runs, say_bytes, say_rate, say_seconds, say_share


@pytest.mark.parametrize("say", [say_bytes, say_rate, say_seconds, say_share])
def test_what_was_not_measured_is_said_so(say) -> None:  # type: ignore[no-untyped-def]
    assert say(None) == "not measured"
    assert say(0) != "not measured"


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, "0.0 %"), (0.0001, "under 0.1 %"), (0.003, "0.3 %"), (0.5, "50.0 %"), (1.0, "100.0 %")],
)
def test_a_share_that_is_not_nothing_is_never_printed_as_nothing(share: float, words: str) -> None:
    assert say_share(share) == words


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), ""),
        (("blocks.0",), "blocks 0"),
        (("blocks.0", "blocks.1", "blocks.2", "blocks.5"), "blocks 0-2, 5"),
        (("blocks.3", "blocks.2"), "blocks 2-3"),
        (
            ("blocks.0", "vace_blocks.1", "text_embedding"),
            "blocks 0; vace_blocks 1; text_embedding",
        ),
    ],
)
def test_names_are_gathered_into_runs(names: tuple[str, ...], words: str) -> None:
    assert name_runs(names) == words


def test_counts_agree_with_their_nouns() -> None:
    assert count_of(1, "copy", "copies") == "1 copy"
    assert count_of(2, "copy", "copies") == "2 copies"
    assert count_of(0, "block") == "0 blocks"
