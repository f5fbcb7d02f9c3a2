"""`shelflife import`: options, progress on a terminal, the summary."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from core.errors import InputError
from core.settings import secret
from shelflife.cli import OK, REJECTED
from shelflife.importing.job import Done, Preview, known_of, preview, run_all
from shelflife.importing.mapping import Options
from shelflife.importing.sources import Query, Source, expand, file_source
from shelflife.service import Service, wall_clock

Out = Callable[[argparse.Namespace, object, str], None]


def run(given: argparse.Namespace, out: Out, say: Callable[[str], None]) -> int:
    """Carry out one import; see `shelflife.cli` for the exit codes."""
    sources, options = _sources(given), _options(given)
    service = Service.open(given.settings)
    try:
        known = known_of(service, options.model)
        if known.spec is None:
            say(f"model {options.model!r} is not registered: nothing is known of its columns")
        now = wall_clock()
        if given.dry_run:
            found = [preview(source, options, known, now, say) for source in sources]
            out(given, found, "\n".join(_previewed(each) for each in found))
            return OK
        done = run_all(
            service,
            sources,
            options,
            known,
            now=now,
            again=given.again,
            say=say,
            progress=_bar if sys.stderr.isatty() and not given.json else _quiet,
        )
        out(given, _summary(done), _told(done))
        return REJECTED if any(d.counts.rejected or d.counts.bad_labels for d in done) else OK
    finally:
        service.close()


def _sources(given: argparse.Namespace) -> list[Source]:
    if given.sql:
        if given.files:
            raise InputError("--sql", given.files, "files or a query, not both")
        url, text = given.sql
        named = secret(url) if url.startswith(("env:", "file:")) else None
        return [Query(named.reveal() if named else url, text)]
    if not given.files:
        raise InputError("files", given.files, "files to import, or --sql URL QUERY")
    return [
        file_source(url, encoding=given.encoding, delimiter=given.delimiter)
        for url in expand(given.files)
    ]


def _options(given: argparse.Namespace) -> Options:
    return Options(
        model=given.model,
        id=given.id,
        time=given.time,
        label=given.label,
        label_time=given.label_time,
        label_delay=given.label_delay,
        version=given.version_,
        prediction=given.prediction,
        outputs=_pairs("--output", given.output),
        inputs=_pairs("--input", given.input),
        ignore=tuple(given.ignore),
        role=given.role,
        tz=given.tz,
    )


def _pairs(option: str, said: Sequence[str]) -> dict[str, str]:
    found = {}
    for each in said:
        name, equals, column = each.partition("=")
        if not (name and equals and column):
            raise InputError(option, each, "NAME=COLUMN")
        found[name] = column
    return found


@contextmanager
def _bar(source: Source) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    parts = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*parts, console=Console(stderr=True)) as progress:
        task = progress.add_task(source.name.split("/")[-1][:40], total=source.rows())
        yield lambda rows: progress.update(task, completed=rows)


@contextmanager
def _quiet(source: Source) -> Iterator[Callable[[int], None]]:
    yield lambda rows: None


def _summary(done: Sequence[Done]) -> dict[str, Any]:
    import msgspec

    names = [name for name in done[0].counts.__struct_fields__ if name != "reject_bytes"]
    fresh = [each.counts for each in done if not each.skipped]
    total = {name: sum(getattr(counts, name) for counts in fresh) for name in names}
    sources = [msgspec.to_builtins(each) for each in done]
    for each in sources:
        del each["counts"]["reject_bytes"]
    return {"total": total, "sources": sources}


def _told(done: Sequence[Done]) -> str:
    lines = []
    for each in done:
        counts = each.counts
        if each.skipped:
            lines.append(f"{each.source}: imported before ({counts.rows:,} rows); --again reads it")
            continue
        parts = [f"{counts.rows:,} rows read", f"{counts.logged:,} logged"]
        for number, text in (
            (counts.repeated, "already there"),
            (counts.labels, "labels"),
            (counts.unknown_labels, "labels for predictions the log does not hold"),
            (counts.unlabelled, "without a label"),
            (counts.rejected, "refused"),
            (counts.bad_labels, "kept without their label, which is none"),
        ):
            if number:
                parts.append(f"{number:,} {text}")
        if each.resumed_at:
            parts.append(f"went on at row {each.resumed_at:,}")
        lines.append(f"{each.source}: {', '.join(parts)}")
        if each.rejects:
            lines.append(f"  refused rows and reasons: {each.rejects}")
    return "\n".join(lines)


def _previewed(found: Preview) -> str:
    lines = [found.source]
    for name, value in found.mapping.items():
        text = (
            ", ".join(f"{k} ← {v}" for k, v in value.items()) if isinstance(value, dict) else value
        )
        lines.append(f"  {name:12} {text}")
    tried = f"{found.predictions:,} predictions, {found.labels:,} labels"
    lines.append(f"  of the first {found.rows:,} rows: {tried}")
    lines += [f"  {count:,} rows: {why}" for why, count in found.problems.items()]
    lines += [f"    {example}" for example in found.examples]
    lines.append("  nothing was written")
    return "\n".join(lines)
