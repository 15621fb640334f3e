"""A refusal names a way out that is one: more is streamed only where not all is."""

import pytest
from plan_samples import blocks, machine, planned

from blockswap.errors import PlanError


@pytest.mark.parametrize(
    ("wish", "more"),
    [({}, False), ({"blocks": "0-7"}, False), ({"blocks": "0,2"}, True), ({"blocks": "7"}, True)],
)
def test_more_is_to_be_streamed_only_where_not_all_is(wish: dict[str, str], more: bool) -> None:
    with pytest.raises(PlanError, match="give it that much") as caught:
        planned(machine(blocks(8)), vram_budget=99, **wish)
    assert ("let more units be streamed" in str(caught.value)) is more
