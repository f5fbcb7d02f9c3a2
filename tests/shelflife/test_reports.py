"""Evidently reports of incidents, from rows as callers really send them."""

from __future__ import annotations

from shop import NOW, ask, customers

from monitor.alert import incidents
from monitor.log.records import Label
from monitor.results import Finding
from registry.loading import load_estimator
from registry.versions import Version
from shelflife import reports
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
    reports.render_wanted(service)
    with service.ledger.read() as tx:
        found = {i.cause: i.report for i in incidents.unresolved(tx)}
    assert found["decay"] is not None
    assert (service.home / found["decay"]).stat().st_size > 100_000
    assert reports.render_wanted(service) == 0  # each is tried once
