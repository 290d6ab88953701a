"""``intc map``: options to a job, the job to an engine, its progress to the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from intc.artifact.reader import open_artifact
from intc.artifact.schema import Manifest
from intc.errors import UsageError
from intc.integrations import blocks, job
from intc.integrations.decoders import Decode, Inputs, Tokens
from intc.integrations.extras import installed


def map_rows(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Run ``intc map``; the JSON and the text about it."""
    keys = tuple(args.trusted_key) or None
    manifest = open_artifact(args.artifact, None, keys).manifest
    columns, decode = decoder(manifest, args.column, args.tokenizer, args.length)
    task = job.Job(
        args.artifact.absolute(),
        tuple(p.absolute() for p in blocks.input_files(args.input)),
        args.output.absolute(),
        columns,
        decode,
        tuple(args.keep),
        args.raw,
        args.batch,
        args.threads,
        args.block_rows,
        tuple(k.absolute() for k in keys) if keys else None,
    )
    with progress_bar() as tell:
        summary = job.run(task, _engine(args), tell)
    text = (
        f"{args.output}: {summary.rows:,} rows in {summary.blocks} block(s)"
        f"{f', {summary.resumed} of them finished before' if summary.resumed else ''}"
    )
    if summary.rejected:
        bad = args.output / blocks.REJECTED
        text += f"\n{bad}: {summary.rejected:,} bad row(s); the first: {summary.cause}"
    return {"output": str(args.output), **asdict(summary)}, text


def decoder(
    manifest: Manifest, given: Sequence[str], tokenizer: Path | None, length: int | None
) -> tuple[tuple[str, ...], Decode]:
    """The columns to read, and what makes inputs of them. UsageError where options and model disagree."""
    if tokenizer is not None:
        if len(given) > 1 or any("=" in text for text in given):
            raise UsageError("--tokenizer reads one column of text: --column NAME")
        column = given[0] if given else "text"
        return (column,), Tokens(tokenizer, manifest, column, length)
    if length is not None:
        raise UsageError("--length is of a tokeniser; give --tokenizer DIR")
    decode = Inputs(manifest, given)
    return tuple(decode.columns.values()), decode


def _engine(args: argparse.Namespace) -> job.Engine:
    if args.engine == "local" or (args.engine == "auto" and not installed("ray") and not args.address):
        if args.workers not in (None, 1) or args.address:
            raise UsageError("--workers and --address are Ray's; run: pip install 'intc-compiler[ray]'")
        return job.local
    if not installed("ray"):
        raise UsageError("--engine ray needs Ray; run: pip install 'intc-compiler[ray]'")
    from intc.integrations.ray import engine

    return engine(args.workers, args.address)


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None] | None]:
    """A function that shows rows done of rows in all, on a terminal; None in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("rows", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
