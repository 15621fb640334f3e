"""A whole video in the memory that is named: planned first, phase by phase, and resumable."""

from .request import VideoRequest
from .run import Clip, make_videos
from .run_plan import RunPlan

__all__ = ["Clip", "RunPlan", "VideoRequest", "make_videos"]
