"""The graph representation: values, types with intervals, text form, verifier, display."""
