"""An artifact's kernels on a GPU. Of NVIDIA's only the driver is needed, of Python's packages only numpy."""
