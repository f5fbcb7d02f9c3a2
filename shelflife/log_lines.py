"""Log lines as events with keys."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime


class Lines(logging.Formatter):
    """Log lines as JSON events: `{"at": …, "event": …, key: value, …}`."""

    _PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        extra = {k: v for k, v in vars(record).items() if k not in self._PLAIN}
        at = datetime.fromtimestamp(record.created, tz=UTC)
        fields = {"at": at.isoformat(), "level": record.levelname, "event": record.getMessage()}
        if record.exc_info:
            extra["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields | extra, default=str)
