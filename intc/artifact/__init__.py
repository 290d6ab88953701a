"""The `.intc` file: one schema for writing and reading."""
