"""Transformations of graphs, one a file; :mod:`intc.passes.pipeline` lists them in order."""
