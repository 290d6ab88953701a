"""C source of a compiled network: freestanding C99 for one thread."""
