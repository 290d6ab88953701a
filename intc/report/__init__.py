"""What can be said about a compiled model: verification, benchmarks, listings."""
