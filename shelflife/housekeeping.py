"""What keeps the inference log small, whole and within its retention: an hourly job."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from core import schema
from core.errors import ShelflifeError
from core.settings import span
from monitor.log.records import Forgotten
from shelflife.service import Service

log = logging.getLogger("shelflife.housekeeping")
_TRAFFIC = timedelta(days=90)  # hourly counts of what was answered are kept for so long


def tidy(service: Service, *, now: datetime) -> None:
    """Retention, compaction and a sweep. A store that does not answer delays all of it."""
    for model in service.inference_log.models():
        try:
            gone = retain(service, model, now=now)
            merged = service.inference_log.compact(model, at=now)
        except ShelflifeError as error:
            log.warning("log_not_tidied", extra={"model": model, "error": str(error)})
            continue
        if merged or (gone and gone.rows):
            rows = gone.rows if gone else 0
            log.info("log_tidied", extra={"model": model, "merged": merged, "deleted_rows": rows})
    with service.ledger.write() as tx:
        old = schema.traffic.c.hour < now - _TRAFFIC
        tx.execute(schema.traffic.delete().where(old))
    swept = service.inference_log.sweep(at=now)
    if swept:
        log.warning("orphans_swept", extra={"files": len(swept), "first": swept[0]})


def retain(service: Service, model: str, *, now: datetime) -> Forgotten | None:
    """Delete what is older than the model's retention; None where it has none."""
    kept = service.model(model).retention
    if kept is None:
        return None
    return service.inference_log.retain(model, since=now - span(kept), at=now)
