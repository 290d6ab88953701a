"""Calibration: one streaming pass over sample feeds that records the range of every float value."""

from intc.calibration.cache import collect_cached
from intc.calibration.derived import derive, is_quantised, widened
from intc.calibration.observers import Observer, Statistics, collect
from intc.calibration.readers import count_batches, open_feeds

__all__ = [
    "Observer",
    "Statistics",
    "collect",
    "collect_cached",
    "count_batches",
    "derive",
    "is_quantised",
    "open_feeds",
    "widened",
]
