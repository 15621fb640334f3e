"""Owns which published runs the forecasts are held against, and the seconds that were published."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """A published run of guided steps: two forwards each."""

    card: str
    model: str
    clip: tuple[int, int, int]
    steps: int
    seconds: float
    said: str
    fp8: bool = False


RUNS = (
    Run("RTX 4090", "wan2.1-t2v-1.3b", (832, 480, 81), 50, 261, "dtype not told"),
    Run("RTX 4090", "wan2.1-i2v-14b", (832, 480, 81), 40, 738, "in fp8", fp8=True),
    Run("RTX 4090", "wan2.1-i2v-14b", (832, 480, 81), 40, 779, "second figure"),
    Run("RTX PRO 6000", "wan2.2-t2v-a14b", (832, 480, 81), 40, 479, "dtype not told"),
    Run("H800", "wan2.1-t2v-14b", (1280, 720, 81), 50, 1838, "50 steps assumed"),
)
