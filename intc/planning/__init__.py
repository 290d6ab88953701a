"""Choosing a plan: measured sensitivity, measured latency, and an integer linear programme over both."""
