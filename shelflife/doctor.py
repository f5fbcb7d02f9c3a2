"""`shelflife doctor`: what is wrong with an installation, and how to mend it."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import sqlalchemy as sa
from packaging.requirements import Requirement
from packaging.version import Version as Release

from core import schema, tokens
from core.errors import ShelflifeError
from core.settings import AccessSettings, secret
from core.times import spell
from monitor.alert import outbox, receivers
from shelflife.service import Service, wall_clock

_DISK = 1e9  # bytes that should be free
_HEARD = timedelta(seconds=15)  # a worker or scheduler silent for longer is down


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one look."""

    what: str
    level: str  # ok, warning or error
    text: str
    mend: str = ""


def examine(service: Service) -> list[Finding]:
    """Look at everything; a look that fails is itself a finding, never an exception."""
    looks: list[Callable[[Service], Iterator[Finding]]] = [
        _versions, _disk, _clock, _ledger, _mlflow, _models, _workers, _receivers, _gpu, _access,
    ]  # fmt: skip
    found: list[Finding] = []
    for look in looks:
        try:
            found.extend(look(service))
        except Exception as error:  # the doctor must reach the end whatever is broken
            name = look.__name__.strip("_")
            found.append(_error(name, f"{type(error).__name__}: {error}", "see the text"))
    return found


def _ok(what: str, text: str) -> Finding:
    return Finding(what=what, level="ok", text=text)


def _warning(what: str, text: str, mend: str) -> Finding:
    return Finding(what=what, level="warning", text=text, mend=mend)


def _error(what: str, text: str, mend: str) -> Finding:
    return Finding(what=what, level="error", text=text, mend=mend)


def _versions(_service: Service) -> Iterator[Finding]:
    yield _ok("python", sys.version.split()[0])
    wrong = []
    try:
        lines = importlib.metadata.requires("shelflife") or []
    except importlib.metadata.PackageNotFoundError:
        mend = "install it (`pip install -c constraints.txt .`) so that its versions can be checked"
        yield _warning("packages", "shelflife runs from a folder and is not installed", mend)
        return
    for line in lines:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            have = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is not installed")
            continue
        if not wanted.specifier.contains(Release(have), prereleases=True):
            wrong.append(f"{wanted.name} is {have}, needed {wanted.specifier}")
    if wrong:
        yield _error("packages", "; ".join(wrong), "reinstall with `-c constraints.txt`")
    else:
        yield _ok("packages", "every dependency is installed at a version that works")


def _disk(service: Service) -> Iterator[Finding]:
    service.home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(service.home).free
    text = f"{free / 1e9:.1f} GB free in {service.home}"
    if free < _DISK:
        yield _error("disk", text, "free some space: the log stops taking rows on a full disk")
    else:
        yield _ok("disk", text)


def _clock(service: Service) -> Iterator[Finding]:
    with tempfile.NamedTemporaryFile(dir=service.home) as file:
        skew = abs(Path(file.name).stat().st_mtime - wall_clock().timestamp())
    if skew > 5:
        text = f"the clock and the file system disagree by {skew:.0f} s"
        yield _error("clock", text, "synchronise the clock (NTP); leases and labels depend on it")
    else:
        yield _ok("clock", f"{wall_clock():%Y-%m-%d %H:%M:%S} UTC")


def _ledger(service: Service) -> Iterator[Finding]:
    shown = service.ledger.url.render_as_string(hide_password=True)
    with service.ledger.write() as tx:  # the write lock can be had
        version = tx.scalar(sa.select(schema.meta.c.value).where(schema.meta.c.key == "schema"))
    yield _ok("ledger", f"{shown}, schema {version}, writable")


def _mlflow(service: Service) -> Iterator[Finding]:
    try:
        models = service.registry.models()
    except Exception as error:
        mend = "check `mlflow.tracking_uri`; a SQLite or PostgreSQL store, not a folder"
        yield _error("mlflow", f"{service.settings.tracking_uri}: {error}", mend)
        return
    have = importlib.metadata.version("mlflow")
    yield _ok("mlflow", f"{have} at {_hidden(service.settings.tracking_uri)}, {len(models)} models")


def _hidden(url: str) -> str:
    return sa.make_url(url).render_as_string(hide_password=True) if "@" in url else url


def _models(service: Service) -> Iterator[Finding]:
    names = service.registry.models()
    for name in names:
        champion = service.registry.by_alias(name, "champion")
        if champion is None:
            mend = f"move the alias in MLflow or run `shelflife promote {name} VERSION`"
            yield _warning(name, "no version is the champion: it is not served", mend)
            continue
        try:
            service.baseline(champion)
            yield _ok(name, f"version {champion.version} is the champion")
        except ShelflifeError as error:
            mend = f"register it again: `shelflife register {name} --model models:/{name}/…`"
            yield _error(name, f"version {champion.version} has no baseline: {error}", mend)
    for name in service.settings.models:
        if name not in names:
            mend = "register it, or mend the name in the settings"
            yield _warning(name, "is in the settings but not registered", mend)


def _workers(service: Service) -> Iterator[Finding]:
    since = wall_clock() - _HEARD
    table = schema.workers
    with service.ledger.read() as tx:
        live = tx.execute(sa.select(table).where(table.c.seen >= since)).all()
    if not live:
        yield _warning("serving", "no worker is running", "start it: `shelflife up` or `serve`")
    for row in live:
        name = f"serving {row.model}"
        if row.error:
            yield _error(name, row.error, "the old version answers; see the worker's log")
        else:
            age = spell(wall_clock() - row.loaded)
            yield _ok(name, f"version {row.version}, loaded {age} ago, by {row.worker}")


def _receivers(service: Service) -> Iterator[Finding]:
    if not service.settings.receivers:
        mend = "add a receiver to the settings; `shelflife init` shows one"
        yield _warning("receivers", "none: nobody will be told of an incident", mend)
    with service.ledger.read() as tx:
        off = outbox.disabled(tx)
    for each in service.settings.receivers:
        name = f"receiver {each.name}"
        try:
            receivers.build([each])
        except ShelflifeError as error:
            yield _error(name, str(error), "mend its address or its secret")
            continue
        if each.name in off:
            mend = f"shelflife receivers enable {each.name}"
            yield _error(name, f"it is disabled: {off[each.name]}", mend)
        else:
            unsigned = each.type == "webhook" and not each.secret
            text = f"{each.type}, set up" + ("; messages are unsigned" if unsigned else "")
            yield _ok(name, f"{text}; `shelflife receivers test {each.name}` sends one")


def _gpu(_service: Service) -> Iterator[Finding]:
    found = shutil.which("nvidia-smi")
    yield _ok("gpu", "an NVIDIA driver is there" if found else "none; models run on the CPU")


def _access(service: Service) -> Iterator[Finding]:
    """Whether strangers may act, and whether anybody may."""
    rules, settings = service.settings.access, service.settings
    hosts = {settings.serving.host, settings.dashboard.host}
    if not rules.enabled:
        open_to = sorted(hosts - {"127.0.0.1", "::1", "localhost"})
        if open_to:
            text = f"off, and ports listen on {', '.join(open_to)}: whoever reaches them may act"
            yield _error("access", text, "set `access.enabled`, or listen on 127.0.0.1")
        else:
            yield _ok("access", "off; only this machine reaches the ports")
        return
    if rules.proxy_user:
        secret(rules.proxy_secret)  # raises what is wrong with it
    named = rules.viewers or rules.operators or rules.admins
    if not named and not any(t.revoked is None for t in tokens.listed(service.ledger)):
        mend = "name people under `access`, or `shelflife tokens create NAME --role admin`"
        yield _error("access", "on, and nobody has a role: nobody can see anything", mend)
    else:
        yield _ok("access", "on; " + _ways(rules))


def _ways(rules: AccessSettings) -> str:
    ways = ["tokens"]
    ways += ["OpenID Connect"] if rules.oidc else []
    ways += [f"a proxy's {rules.proxy_user}"] if rules.proxy_user else []
    return "people are known by " + ", ".join(ways)
