"""What workers are told to serve, in line with MLflow's aliases and with the runs' stages."""

from __future__ import annotations

import logging
from datetime import datetime

import msgspec

from core.errors import NotReady, ShelflifeError
from core.settings import InterpreterSettings, span
from monitor.alert import incidents
from monitor.results import Finding
from registry import promotion
from retrain import rollout
from serving import deploy
from serving.deploy import Deployed
from serving.interpreters import Wanted
from shelflife.service import Service
from shelflife.tick import resolve_one_off

log = logging.getLogger("shelflife.deploying")


def deploy_model(service: Service, model: str, *, now: datetime) -> Deployed | None:
    """Bring one model in line; None when it has no champion.

    A move of `champion` that a person made in MLflow is written down on this occasion.

    Raises:
        ShelflifeError: see `serving.deploy.sync`.
    """
    settings = service.model(model)
    champion = promotion.observe(service.registry, service.ledger, model, now=now)
    second = None
    if champion is not None:
        alias = service.registry.by_alias(model, "challenger")
        found = rollout.beside(
            service.ledger, model, champion.version, settings,
            challenger=alias.version if alias is not None else "", at=now,
        )  # fmt: skip
        if found is not None:
            second = deploy.Beside(**msgspec.structs.asdict(found))
    done = deploy.sync(
        service.registry, service.ledger, service.home, model,
        trust_pickle=settings.trust_pickle, now=now, beside=second, wanted=_wanted(service, model),
    )  # fmt: skip
    if done is not None and done.problem:
        log.warning("challenger_not_deployed", extra={"model": model, "error": done.problem})
    return done


def _wanted(service: Service, model: str) -> Wanted:
    """How the model's interpreter is chosen: serving's settings, and the model's own over them."""
    own, common = service.model(model), service.settings.serving
    shared = {name: getattr(common, name) for name in InterpreterSettings.__struct_fields__}
    for name in ("backend", "profile"):
        if getattr(own, name) is not None:
            shared[name] = getattr(own, name)
    budget = span(own.latency_budget).total_seconds()
    return Wanted(
        settings=InterpreterSettings(**shared), threads=common.threads, budget_ms=budget * 1e3
    )


def deploy_all(service: Service, *, now: datetime) -> list[str]:
    """Bring what is served in line with the aliases; returns the models that changed."""
    changed = []
    for model in service.registry.models():
        try:
            done = deploy_model(service, model, now=now)
        except NotReady:
            continue  # a promotion is under way; the next poll sees its end
        except ShelflifeError as error:
            log.error("deploy_failed", extra={"model": model, "error": str(error)})
            _report(service, model, str(error), now)
            continue
        if done is not None and done.changed:
            changed.append(model)
            _mended(service, model, done.version, now)
    return changed


def _mended(service: Service, model: str, version: str, now: datetime) -> None:
    """A deployment that works again ends the incident of the one that did not."""
    context = service.context(model, service.registry.by_alias(model, "champion"))
    with service.ledger.write() as tx:
        resolve_one_off(tx, context, "deploy_failed", f"v{version} is prepared for serving", now)


def _report(service: Service, model: str, error: str, now: datetime) -> None:
    version = service.registry.by_alias(model, "champion")
    finding = Finding(
        cause="deploy_failed",
        severity="page",
        title="the champion cannot be prepared for serving; the version before it answers",
        text=error,
        since=now,
    )
    context = service.context(model, version, command="shelflife doctor")
    with service.ledger.write() as tx:
        incidents.open_incident(
            tx, service.ledger, context=context,
            version=version.version if version else "", finding=finding, at=now,
        )  # fmt: skip
