"""Reports: the plan and what was measured, as words, a picture and a trace. Plain Python."""

from .debug import debug_line
from .summary import Summary, summarise
from .timeline import draw_timeline
from .trace import trace_of, write_trace

__all__ = ["Summary", "debug_line", "draw_timeline", "summarise", "trace_of", "write_trace"]
