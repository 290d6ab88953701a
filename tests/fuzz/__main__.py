"""The command: ``python -m tests.fuzz artifacts|models|compilations --count N --seed S``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.fuzz import artifacts, models, watch
from tests.fuzz.watch import Result, Target

TARGETS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Target]]] = {
    "artifacts": (artifacts.prepare, artifacts.Artifacts),
    "models": (models.prepare, models.Models),
    "compilations": (models.prepare, models.Compilations),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--count", type=int, default=1000, help="cases (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="only this case, in this process, with its traceback")
    args = parser.parse_args()
    prepare, target = TARGETS[args.target]
    with tempfile.TemporaryDirectory(prefix="intc-fuzz-") as name:
        folder = Path(name)
        prepare(folder)
        if args.case is not None:
            case = folder / "case"
            case.mkdir()
            made = target(folder)
            made.read(made.write(watch.random_of(args.seed, args.case), case))
            print(f"case {args.case} can be read")
            return 0
        start = time.monotonic()
        cases = range(args.count)
        result = watch.run(
            partial(target, folder), args.seed, cases, lambda r: print(line(r), file=sys.stderr)
        )
    print(f"{args.target}, seed {args.seed}: {line(result)}, in {time.monotonic() - start:.0f} s")
    for cause in result.bad:
        print(cause)
    return 1 if result.bad else 0


def line(result: Result) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in result.outcomes.most_common())
    return (
        f"{result.cases} cases: {counts}; slowest {result.slowest[0]:.1f} s "
        f"(case {result.slowest[1]}), largest process {result.memory / 2**20:.0f} MB"
    )


if __name__ == "__main__":
    sys.exit(main())
