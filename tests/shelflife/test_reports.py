"""Evidently reports of incidents, from rows as callers really send them."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from shop import NOW, ask, customers

from core import schema
from core.errors import InputError, NotFound
from monitor.alert import incidents
from monitor.log.records import Label
from monitor.results import Finding
from registry.loading import load_estimator
from registry.versions import Version
from shelflife import reports
from shelflife.commands import ask as ask_for
from shelflife.commands import obey
from shelflife.service import Service


def test_mixed_labels_and_an_empty_window_do_not_stop_the_others(
    service: Service, champion: Version
) -> None:
    frame = customers(200, seed=2, start=NOW)
    ask(service, "1", frame, load_estimator(service.registry.fetch(champion)))
    until = frame["at"].iloc[-1]
    odd = [
        Label(model="shop", id=frame["id"].iloc[i], value=value, time=until)
        for i, value in enumerate(["1", True, "maybe"])
    ]
    service.log.append_labels(odd, received=NOW)
    context = service.context("shop", champion)
    with service.ledger.write() as tx:
        for cause, at in (("decay", until), ("no_data", until.replace(year=2030))):
            finding = Finding(cause=cause, severity="page", title=cause)
            incidents.open_incident(
                tx, service.ledger, context=context, version="1", finding=finding, at=at
            )
    asked = _asked(service, until)
    reports.render_wanted(service)
    with service.ledger.read() as tx:
        found = {i.cause: i.report for i in incidents.unresolved(tx)}
    assert found["decay"] is not None
    assert (service.home / found["decay"]).stat().st_size > 100_000
    assert reports.render_wanted(service) == 0  # each is tried once
    with service.ledger.read() as tx:
        row = tx.execute(sa.select(schema.reports)).one()
    assert (row.subject, row.state, row.by) == (asked, "ready", "ada")
    assert (service.home / row.path).stat().st_size > 100_000
    said = reports.want(service, "shop", asked, by="bert", now=NOW)  # it exists: not made again
    assert said.endswith("is there")
    assert reports.render_wanted(service) == 0


def _asked(service: Service, until: datetime) -> str:
    """Ask, through a request as the API writes it, for the report of a check of these rows."""
    with service.ledger.write() as tx:
        added = tx.execute(
            schema.checks.insert().values(
                model="shop", version="1", at=until, window_start=until - timedelta(days=7),
                window_end=until, rows=1, labelled=0, state="healthy", result="{}", created=NOW,
            )
        )  # fmt: skip
    subject = f"check:{added.inserted_primary_key[0]}"
    ask_for(
        service.ledger, "shop", "report", {"subject": subject}, by="ada", reason="audit", now=NOW
    )
    assert obey(service, now=NOW) == 1
    return subject


@pytest.mark.parametrize(
    ("subject", "error"),
    [
        ("check:999", NotFound),
        ("check:x", NotFound),
        ("run:nobody", NotFound),
        ("incident:7", NotFound),
        ("model:shop", InputError),
        ("check:", InputError),
        ("", InputError),
    ],
)
def test_a_report_of_nothing_is_refused(
    service: Service, subject: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        reports.want(service, "shop", subject, by="ada", now=NOW)
    with service.ledger.read() as tx:
        assert not tx.execute(sa.select(schema.reports)).all()
