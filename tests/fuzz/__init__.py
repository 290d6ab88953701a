"""Hostile files: seeded mutations of real artifacts and ONNX models, each read in a watched process.

``python -m tests.fuzz artifacts --count 100000 --seed 1`` (or ``make fuzz``). Whatever a file holds, reading
it ends within SECONDS and BYTES of :mod:`tests.fuzz.watch`, and either works or raises an error of
``intc/errors.py`` in one line.
"""
