"""A lasting change is one episode until somebody accepts it as the new normal."""

from __future__ import annotations

import json
from datetime import timedelta

import pandas as pd
import pytest
import sqlalchemy as sa
from shop import NOW, ask, customers

from core import schema
from core.errors import InputError
from monitor.alert import incidents
from registry.loading import load_estimator
from registry.versions import Version
from shelflife import cli
from shelflife.accepting import accept_now, in_force
from shelflife.commands import ask as command
from shelflife.commands import obey
from shelflife.service import Service
from shelflife.tick import measure, tick

DAY = timedelta(days=1)


def older(service: Service, version: Version, days: int) -> None:
    """Traffic of customers ten years older than the baseline's, 48 rows a day."""
    rows = customers(48 * days, seed=7, start=NOW)
    rows["age"] = rows["age"] + 3 * rows["age"].std()
    ask(service, version.version, rows, load_estimator(service.registry.fetch(version)))


def drift_incidents(service: Service) -> list[sa.Row[tuple[object, ...]]]:
    table = schema.incidents
    with service.ledger.read() as tx:
        return list(tx.execute(sa.select(table).where(table.c.cause == "drift")).all())


def test_a_change_is_one_episode_until_it_is_accepted(
    service: Service, champion: Version, capsys: pytest.CaptureFixture[str]
) -> None:
    older(service, champion, 12)
    for day in range(4, 9):
        tick(service, "shop", at=NOW + day * DAY)
    [told] = drift_incidents(service)  # five checks, one episode
    assert told.state == "open"

    at = NOW + 9 * DAY
    done = accept_now(service, "shop", by="ann", reason="a new market", at=at)
    assert (done.version, done.by, done.resolved) == (champion.version, "ann", told.id)
    assert done.rows >= 48 * 6
    with service.ledger.read() as tx:
        events = incidents.timeline(tx, told.id)
        [kept] = tx.execute(sa.select(schema.accepted_baselines)).all()
    assert events[-1].text == "accepted as the new baseline by ann: a new market"
    assert (kept.by, kept.reason, kept.rows) == ("ann", "a new market", done.rows)

    after = measure(service, champion, at=at + DAY)
    assert not any(column.drifted for column in after.drift)
    assert "check windows" in after.provisional  # a week of rows knows little of weeks
    before = measure(service, champion, at=NOW + 8 * DAY)  # of a moment when nobody had
    assert any(column.drifted for column in before.drift)
    assert in_force(service, champion, at=at - timedelta(seconds=1)) is None
    found = in_force(service, champion, at=at)
    assert found is not None
    assert found[0].expected == service.baseline(champion)[0].expected

    # The same through the API's row and the command line.
    command(service.ledger, "shop", "accept", {}, by="bob", reason="", now=at)
    assert obey(service, now=at + DAY) == 1
    with service.ledger.read() as tx:
        assert tx.scalar(sa.select(sa.func.count()).select_from(schema.accepted_baselines)) == 2
        assert tx.scalar(sa.select(schema.commands.c.state)) == "done"


def test_too_few_rows_are_no_baseline(service: Service, champion: Version) -> None:
    older(service, champion, 2)
    with pytest.raises(InputError, match="at least 200"):
        accept_now(service, "shop", by="ann", reason="", at=NOW + 2 * DAY)


def test_the_command_says_what_it_needs(
    service: Service, champion: Version, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["accept", "shop", "--over", "7d", "--json"]) != 0
    assert "rows" in capsys.readouterr().err
    assert json.loads("[]") == pd.DataFrame().to_dict("records")
