"""The loop on a small shop: decay is proven, told, answered, and the answer is proven better."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import msgspec
import pandas as pd
import pytest
import sqlalchemy as sa
from shop import NOW, ask, customers

from core import schema
from core.errors import NotFound
from core.settings import RetrainSettings
from monitor import estimates, lifetimes
from monitor.alert import incidents
from registry.loading import load_estimator
from registry.versions import Version
from shelflife import actions, commands, show
from shelflife.deploying import deploy_all
from shelflife.register import register
from shelflife.runs import advance
from shelflife.scheduler import run_due
from shelflife.service import Service
from shelflife.tick import measure, tick

DAYS = timedelta(days=1)


def live(service: Service, version: Version, days: int, *, turned: bool, seed: int = 5) -> None:
    """Traffic from NOW on, 48 rows a day."""
    estimator = load_estimator(service.registry.fetch(version))
    ask(
        service,
        version.version,
        customers(48 * days, seed=seed, start=NOW, turned=turned),
        estimator,
    )


def test_a_healthy_model_is_left_alone(service: Service, champion: Version) -> None:
    live(service, champion, 8, turned=False)
    found = tick(service, "shop", at=NOW + 8 * DAYS)
    assert found is not None
    assert found.check.state == "healthy"
    assert found.check.performance.worse is False
    assert found.decision.action == "wait"
    assert "not needed" in found.decision.reason
    assert found.opened == ()


def test_decay_is_told_answered_and_over(service: Service, champion: Version) -> None:
    live(service, champion, 14, turned=True)
    found = None
    for day in range(3, 9):
        found = tick(service, "shop", at=NOW + day * DAYS)
        assert found is not None
        if found.run_id:
            break
    assert found is not None
    assert found.check.state == "decaying"
    assert found.run_id is not None
    at = found.check.at
    with service.ledger.read() as tx:
        [incident] = [i for i in incidents.unresolved(tx, "shop") if i.cause == "decay"]
    assert (incident.severity, incident.run_id) == ("page", found.run_id)

    state = advance(service, "shop", at=at, wall=at)
    assert state is not None
    assert state.state == "promoted", state.outcome
    assert state.gate is not None
    assert state.gate.low is not None
    assert state.gate.low > 0
    new = service.registry.by_alias("shop", "champion")
    assert new is not None
    assert new.version == state.candidate == "2"
    assert new.tags["shelflife.run_id"] == state.id
    assert new.tags["shelflife.incident"] == str(incident.id)  # one id from sign to end
    before = service.registry.by_alias("shop", "previous")
    assert before is not None
    assert before.version == "1"
    with service.ledger.read() as tx:
        events = incidents.timeline(tx, incident.id)
        texts = [event.text for event in events]
    kinds = [event.kind for event in events]
    assert kinds[: kinds.index("opened") + 1] in (["noticed", "opened"], ["opened"])
    assert kinds[-2:] == ["run", "watched"]
    assert any("started" in text for text in texts)
    assert any("promoted" in text for text in texts)
    assert advance(service, "shop", at=at, wall=at) is None  # it is over, once
    again = actions.check_now(service, "shop", at=at, record=False)
    assert (again.check, again.decision) == (found.check, found.decision)
    told = show.check(again)
    for words in (
        "decay proven (e = ",
        "ROC AUC 0.",
        "estimated without labels (CBPE): ",
        "ages: ",
    ):
        assert words in told
    assert "shelf life: " in told

    # The replaced version lives on in shadow, on rows that the new champion answered.
    later = customers(48 * 4, seed=7, start=NOW + 15 * DAYS, turned=True)
    ask(service, "2", later, load_estimator(service.registry.fetch(new)))
    for day in (18, 20):
        assert tick(service, "shop", at=NOW + day * DAYS) is not None
    points = lifetimes.listed(service.ledger, "shop")
    shadows = [p for p in points if (p.version, p.how) == ("1", "shadow")]
    assert shadows
    assert all(p.fresh is not None and p.value > p.fresh for p in shadows)
    assert {p.version for p in points if p.how == "served"} == {"1", "2"}
    kept = estimates.listed(service.ledger, "shop")
    assert any(row.realised is not None for row in kept)


def test_what_carries_the_loss_is_found_by_asking_the_version(
    service: Service, champion: Version
) -> None:
    frame = customers(48 * 8, seed=5, start=NOW)
    frame["spent"] += 80.0  # a fee was added upstream; nobody spends more
    ask(service, "1", frame, load_estimator(service.registry.fetch(champion)))
    found = tick(service, "shop", at=NOW + 8 * DAYS)
    assert found is not None
    assert found.check.performance.worse is True
    [first, *_] = found.check.causes
    assert (first.kind, first.columns) == ("broken", ("spent",))
    assert f"carries the loss: {first.text}" in show.check(found)
    [decay] = [finding for finding in found.check.findings if finding.cause == "decay"]
    assert "carried by: spent broken (" in decay.text


@pytest.mark.postgres
def test_the_loop_on_postgresql(
    service_on_postgres: Service, model: object, frame: pd.DataFrame
) -> None:
    service = service_on_postgres
    version = register(
        "shop",
        model,
        reference=frame,
        target="bought",
        time="at",
        id="id",
        service=service,
        now=NOW,
    )
    live(service, version, 14, turned=True)
    for day in range(3, 9):
        found = run_due(service, "shop", now=NOW + day * DAYS)
        assert found is not None
        if found.run_id:
            break
    at = found.check.at
    state = advance(service, "shop", at=at, wall=at)
    assert state is not None
    assert state.state == "promoted", state.outcome
    assert deploy_all(service, now=at) == ["shop"]
    assert service.log.seal(before=NOW + 99 * DAYS) == 48 * 14
    assert len(service.log.read("shop", labelled=True)) == 48 * 14
    assert commands.ask(service.ledger, "shop", "check", {}, by="me", reason="", now=at) == 1
    assert commands.obey(service, now=at) == 1


def test_a_trainer_that_raises_leaves_the_champion_and_an_incident(
    service: Service, champion: Version, home: Path
) -> None:
    live(service, champion, 10, turned=True)
    (home / "mine.py").write_text(
        "def train(inputs, labels, estimator):\n    raise ValueError('no such column: shoe_size')\n"
    )
    settings = service.settings
    retrain = RetrainSettings(trainer="mine:train", min_new_labels=100)
    defaults = msgspec.structs.replace(settings.defaults, retrain=retrain)
    service.settings = msgspec.structs.replace(settings, defaults=defaults)
    at = NOW + 8 * DAYS
    actions.retrain_now(service, "shop", by="test", reason="try", at=at)
    state = advance(service, "shop", at=at, wall=at)
    assert state is not None
    assert state.state == "failed"
    assert "shoe_size" in state.outcome
    champion_now = service.registry.by_alias("shop", "champion")
    assert champion_now is not None
    assert champion_now.version == "1"
    with service.ledger.read() as tx:
        [incident] = [i for i in incidents.unresolved(tx, "shop") if i.cause == "retrain_failed"]
    assert incident.severity == "page"
    assert (
        "shoe_size" in json.loads(incident.finding)["text"]
        if isinstance(incident.finding, str)
        else "shoe_size" in incident.finding.text
    )


def test_a_human_who_moves_the_alias_is_obeyed(
    service: Service, champion: Version, model: object
) -> None:
    deploy_all(service, now=NOW)
    pointer = service.home / "serving" / "pointers" / "shop.json"
    assert json.loads(pointer.read_text())["champion"]["version"] == "1"
    other = service.registry.add(
        "shop",
        model,
        service.baseline(champion)[0].spec,
        files={
            name: service.registry.file(champion, name)
            for name in ("spec.json", "baseline.json", "reference.parquet")
        },
        tags={},
        metrics={},
        now=NOW,
    )
    service.registry.set_alias("shop", "champion", other.version)  # as the MLflow UI does
    assert deploy_all(service, now=NOW + DAYS) == ["shop"]
    assert json.loads(pointer.read_text())["champion"]["version"] == other.version
    tick(service, "shop", at=NOW + DAYS)
    with service.ledger.read() as tx:
        kinds = tx.execute(
            sa.select(schema.promotions.c.kind, schema.promotions.c.version).order_by(
                schema.promotions.c.id
            )
        ).all()
    assert kinds == [("first", "1"), ("human", other.version)]
    back = actions.rollback_now(service, "shop", by="me", reason="slower", at=NOW + 2 * DAYS)
    assert back.version == "1"
    assert json.loads(pointer.read_text())["champion"]["version"] == "1"


def test_a_check_of_the_past_is_what_it_was(service: Service, champion: Version) -> None:
    live(service, champion, 10, turned=True)
    at = NOW + 5 * DAYS
    then = tick(service, "shop", at=at)
    assert then is not None
    ask_later = customers(100, seed=9, start=NOW + 11 * DAYS)
    ask(service, "1", ask_later, load_estimator(service.registry.fetch(champion)))
    assert measure(service, champion, at=at) == then.check


def test_a_check_of_the_past_is_of_the_champion_of_then(
    service: Service, champion: Version, model: object, frame: pd.DataFrame
) -> None:
    live(service, champion, 10, turned=True)
    at = NOW + 5 * DAYS
    then = tick(service, "shop", at=at)
    assert then is not None
    register(
        "shop", model, reference=frame, target="bought", time="at", id="id", service=service,
        promote=True, now=at,
    )  # fmt: skip
    service.registry.set_alias("shop", "champion", "1")  # nobody has noticed yet
    again = actions.check_now(service, "shop", at=at, record=False)
    assert again.check == then.check
    with service.ledger.read() as tx:
        kinds = tx.scalars(sa.select(schema.promotions.c.kind)).all()
    assert kinds == ["first", "forced"]  # looking back recorded nothing
    with pytest.raises(NotFound, match="no version was the champion at"):
        actions.check_now(service, "shop", at=NOW - DAYS, record=False)


def test_no_champion_means_no_check(service: Service) -> None:
    service.registry.prepare()
    assert tick(service, "nobody", at=NOW) is None


@pytest.mark.parametrize("broken", ["missing", "unit"])
def test_a_broken_feed_pages_and_never_retrains(
    service: Service, champion: Version, broken: str
) -> None:
    estimator = load_estimator(service.registry.fetch(champion))
    frame = customers(48 * 8, seed=3, start=NOW)
    if broken == "unit":
        frame["spent"] *= 1000
        ask(service, "1", frame, estimator)
    else:
        ask(service, "1", frame.assign(spent=frame["spent"].fillna(0)), estimator)
        with service.ledger.write() as tx:  # the feed lost the column after the model answered
            tx.execute(sa.text("UPDATE predictions SET inputs = json_set(inputs, '$.spent', null)"))
    found = tick(service, "shop", at=NOW + 8 * DAYS)
    assert found is not None
    assert found.check.state == "broken_feed"
    assert found.decision.action == "wait"
    assert found.run_id is None
    with service.ledger.read() as tx:
        [incident] = incidents.unresolved(tx, "shop")
    assert (incident.cause, incident.severity) == ("broken_feed", "page")
    assert "spent" in incident.title
