"""Phase 3: every float value of the canonical graph becomes integers with compile-time scales."""
