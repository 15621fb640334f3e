"""Reports: the plan and what was measured, as words, a picture and a trace. Plain Python."""

from blockswap.report.debug import debug_line
from blockswap.report.summary import Summary, summarise
from blockswap.report.timeline import draw_timeline
from blockswap.report.trace import trace_of, write_trace

__all__ = ["Summary", "debug_line", "draw_timeline", "summarise", "trace_of", "write_trace"]
