"""How reshapes and transposes pass each other."""

from __future__ import annotations

from intc.ir.dims import Shape, product


def runs(coarse: Shape, fine: Shape) -> list[list[int]] | None:
    """For each axis of ``coarse`` the run of axes of ``fine`` whose product it is; None when they do not
    align.
    """
    found: list[list[int]] = []
    start = 0
    for size in coarse:
        stop = start + 1
        while stop < len(fine) and product(fine[start:stop]) != size:
            stop += 1
        if start >= len(fine) or product(fine[start:stop]) != size:
            return None
        found.append(list(range(start, stop)))
        start = stop
    return found if start == len(fine) else None


def unmerged(fine: Shape, merged: Shape, perm: tuple[int, ...], out: Shape) -> tuple[int, ...] | None:
    """The permutation P with ``reshape(transpose(reshape(x, merged), perm), out) == transpose(x, P)``, if
    any.
    """
    parts = runs(merged, fine)
    if parts is None:
        return None
    full = tuple(axis for i in perm for axis in parts[i])
    return full if tuple(fine[i] for i in full) == tuple(out) else None


def reshaped_first(perm: tuple[int, ...], moved: Shape, out: Shape) -> tuple[Shape, tuple[int, ...]] | None:
    """(S, P) with ``reshape(transpose(x, perm), out) == transpose(reshape(x, S), P)`` where ``moved``, the
    shape in between, is only split, or only axes that lie side by side in x are merged; and not just axes of
    size 1 given or taken, but in front of matrices that are turned.
    """
    split = runs(moved, out)
    if split is not None:
        turned = perm == (*range(len(perm) - 2), len(perm) - 1, len(perm) - 2)
        checked = split[-2:] if turned else split
        if any(len(run) > 1 and 1 in [out[axis] for axis in run] for run in checked):
            return None
        before = [axis for original in range(len(perm)) for axis in split[perm.index(original)]]
    else:
        merged = runs(out, moved)
        if merged is None or any(len(run) > 1 and 1 in [moved[axis] for axis in run] for run in merged):
            return None
        originals = [[perm[axis] for axis in run] for run in merged]
        if any(run != list(range(run[0], run[0] + len(run))) for run in originals):
            return None
        before = sorted(range(len(out)), key=lambda axis: originals[axis][0])
    return tuple(out[axis] for axis in before), tuple(before.index(axis) for axis in range(len(out)))


def through(first: tuple[int, ...], before: Shape, after: Shape, second: tuple[int, ...]) -> Shape | None:
    """The shape S with ``transpose(reshape(transpose(x, first), after), second) == reshape(x, S)``, if one
    exists.

    The reshape must map each axis of ``before`` to a run of axes of ``after``, or the other way round; the
    transposes must cancel on the runs.
    """
    split = runs(before, after)
    if split is None:
        merged = runs(after, before)  # the reshape merges axes
        order = [first[axis] for i in second for axis in merged[i]] if merged is not None else []
        return tuple(after[i] for i in second) if order and order == sorted(order) else None
    wanted = [axis for original in range(len(first)) for axis in split[first.index(original)]]
    return tuple(after[i] for i in second) if list(second) == wanted else None
