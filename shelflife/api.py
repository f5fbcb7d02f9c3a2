"""Every route beside inference, put together: `/api/v1`, `/healthz`, `/metrics`, `/openapi.json`.

It shares the serving process and therefore imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.ledger import Ledger
from core.settings import Settings
from monitor.log.records import SampleLog
from shelflife.service import wall_clock
from shelflife.web.control import Control
from shelflife.web.edge import JSON, Bodies, edge
from shelflife.web.hints import Hints
from shelflife.web.ingest import Count, Ingest
from shelflife.web.kserve import Events
from shelflife.web.limits import Limits
from shelflife.web.oncall import OnCall
from shelflife.web.specs import Specs


class Api:
    """Routes over a ledger and a log.

    Args:
        snapshot: this process's own counters, for `/metrics`.
        count: adds to one of them.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        log: SampleLog,
        snapshot: Callable[[], dict[str, Any]],
        count: Count,
    ) -> None:
        specs, bodies = Specs(settings.home_path, ledger), Bodies(Limits.of(settings))
        clock = wall_clock
        self.control = Control(settings, ledger, log, specs, bodies, snapshot=snapshot, clock=clock)
        self.oncall = OnCall(settings, ledger, bodies, clock=clock)
        self.ingest = Ingest(settings, specs, log, bodies, count=count, clock=clock)
        self.events = Events(settings, specs, ledger, log, bodies, count=count, clock=clock)

        secret = settings.mlflow.webhook_secret
        self.hints = Hints(secret, ledger, bodies, clock=clock)

    def routes(self) -> list[Route]:
        """What to mount beside the inference routes."""
        control, one = self.control, "/api/v1/models/{model}"
        get = {
            "/api/v1/models": control.models,
            one: control.model,
            f"{one}/windows": control.windows,
            "/api/v1/commands/{id}": control.command,
            "/api/v1/incidents": control.incidents,
            "/api/v1/incidents/{id}": self.oncall.incident,
            "/runbooks/{cause}": self.oncall.runbook,
            "/api/v1/runs": control.runs,
            "/healthz": control.health,
            "/metrics": control.metrics,
            "/openapi.json": self.document,
        }
        post = {
            f"{one}/predictions": self.ingest.predictions,
            f"{one}/labels": self.ingest.labels,
            f"{one}/cloudevents": self.events.receive,
            f"{one}/actions/{{action}}": control.act,
            "/api/v1/cloudevents": self.events.receive,
            "/api/v1/hints/mlflow": self.hints.receive,
            "/api/v1/incidents/{id}/{action}": self.oncall.act,
            "/api/v1/silences/{id}/end": self.oncall.end,
        }
        silences = edge(self.oncall.all_silences)
        return [
            Route("/api/v1/silences", silences, methods=["GET", "POST"]),
            *(Route(path, edge(handler), methods=["GET"]) for path, handler in get.items()),
            *(Route(path, edge(handler), methods=["POST"]) for path, handler in post.items()),
        ]

    async def document(self, request: Request) -> Response:
        """The OpenAPI document of the whole server."""
        from shelflife.web import openapi  # schemas of everything: nobody needs them to start

        return Response(openapi.encoded(), media_type=JSON)
