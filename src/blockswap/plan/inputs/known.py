"""What was worked out once and holds for every budget: kept while the same model is asked about."""

from typing import Protocol, TypeVar, cast

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Recipe(Protocol[T_co]):
    """All that a value is made of. Equal recipes make equal values."""

    def make(self) -> T_co: ...


class Known:
    """Values by their recipes; a few, for one model and machine."""

    def __init__(self) -> None:
        self._made: list[tuple[object, object]] = []

    def of(self, recipe: Recipe[T]) -> T:
        """What the recipe makes; made when it is asked for the first time."""
        for known, value in self._made:
            if known == recipe:
                return cast("T", value)
        value = recipe.make()
        self._made.append((recipe, value))
        return value
