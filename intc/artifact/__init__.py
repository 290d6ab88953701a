"""The artifact file: one schema for writer and reader; reading it needs nothing of the compiler."""
