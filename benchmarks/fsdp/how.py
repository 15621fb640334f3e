"""Measures one case: processes over gloo on the CPU, as in the tests of ranks."""

from benchmarks.fsdp.what import Row
from ranks.fleet import run_ranks, values


def measure(schedule: str, ranks: int) -> Row:
    """Starts the ranks, each of which runs the model twice."""
    found = values(run_ranks(ranks, "beside_fsdp", schedule=schedule))
    return Row(
        schedule=schedule,
        ranks=ranks,
        weights=found[0]["weights"],
        gathered=max(one["gathered"] for one in found),
        held=sum(one["host"] for one in found),
        equal=all(one["equal"] for one in found),
    )
