"""Calibration: one streaming pass over sample feeds that records the range of every float value."""

from intc.calibration.observers import Statistics, collect
from intc.calibration.readers import open_feeds

__all__ = ["Statistics", "collect", "open_feeds"]
