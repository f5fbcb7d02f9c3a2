"""The live clock: what is due is done once, however many processes share the ledger.

APScheduler fires every job often and forgets everything (memory job store); whether something is
due, and whose turn it is, is a row in the ledger (`leases`). Two schedulers on one ledger
therefore never run the same check twice, and one that dies is replaced when its lease runs out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from time import monotonic

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy.exc import SQLAlchemyError

from core.errors import LeaseLost, ShelflifeError
from core.ledger import Lease, release_lease, take_lease
from core.settings import span
from monitor.alert import delivery, refreshing
from monitor.alert import receivers as tellers
from registry.store import import_mlflow
from retrain import run
from shelflife import commands, health, housekeeping, oncall, reports, selfwatch, serving_watch
from shelflife.deploying import deploy_all
from shelflife.health import Problem
from shelflife.leases import HOLDER, LASTS, held
from shelflife.pulses import PULSE, Pulses
from shelflife.runs import advance, clean
from shelflife.selfwatch import Heartbeat, SelfWatch
from shelflife.service import Service, wall_clock
from shelflife.tick import TickResult, grid, rhythm, tick
from shelflife.web import hints

log = logging.getLogger("shelflife.scheduler")
_THREADS = 20  # more than there are jobs: none waits for another
_BEAT = 1.0  # seconds between looks at what is due
_TURN = 5.0  # seconds between looks at reminders, silences and workers
_PULSE = 5.0  # seconds between the lines that say which jobs work
_SEAL_AFTER = timedelta(hours=1)  # rows this long in the hot table are sealed
_SEAL_ROWS = 1_000
_PAUSES = (1.0, 2.0, 5.0, 15.0, 60.0)  # seconds before a run that cannot go on is tried again


def run_due(service: Service, model: str, *, now: datetime) -> TickResult | None:
    """Run the model's check if it is due and nobody else does; returns what it found."""
    every = rhythm(service, model)
    lease = take_lease(service.ledger, f"check:{model}", HOLDER, now=now, lasts=5 * LASTS, due=True)
    if lease is None:
        return None
    at = grid(now, every)
    try:
        return tick(service, model, at=at, lease=lease)
    except LeaseLost:
        return None  # we slept; whoever took over does it
    finally:
        release_lease(service.ledger, lease, due=at + every)


class Scheduler:
    """Every recurring job of one installation, in this process."""

    def __init__(self, service: Service) -> None:
        import_mlflow()  # before there are threads
        self.service = service
        self.receivers = tellers.build(service.settings.receivers)
        self.pulses = Pulses()
        self.heartbeat = Heartbeat(service.settings, self.receivers)
        self._self = SelfWatch(service)
        self._refreshed: dict[str, datetime] = {}
        self._heeded = ""  # the newest hint that we have polled after
        self._later: dict[str, tuple[int, float]] = {}  # models whose run waits: tries, until when
        self._jobs = BackgroundScheduler(
            jobstores={"default": MemoryJobStore()},
            executors={"default": ThreadPoolExecutor(_THREADS)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": 60},
            timezone="UTC",
        )
        poll = span(service.settings.mlflow.poll_every).total_seconds()
        self._add(self.poll_registry, poll)
        if service.settings.mlflow.webhook_secret:
            self._add(self.heed_hints, _BEAT)
        self._add(self.run_checks, _BEAT)
        self._add(self.run_retraining, _BEAT)
        self._started = wall_clock()
        self._add(self.alerts, _TURN)
        self._add(self.deliver, _BEAT)
        self._add(self.refresh, _BEAT)
        self._add(self.obey_commands, _BEAT)
        self._add(self.render_reports, 5.0)
        self._add(self.seal, 60.0)
        self._add(self.clean, 3600.0)
        self._add(self.tidy, 3600.0)
        self._add(self.pulse, _PULSE)
        self._add(self.watch_itself, selfwatch.EVERY)
        if self.heartbeat.wanted:
            self._add(self.beat, self.heartbeat.every.total_seconds())

    def _add(self, job: Callable[[], object], seconds: float) -> None:
        def guarded() -> None:
            try:
                job()
            except Exception as error:  # one failing job must not stop the others
                log.exception("job_failed", extra={"job": job.__name__})
                self.pulses.failed(job.__name__, wall_clock(), type(error).__name__)
                self.service.ledger.count("job_failures")
            else:
                self.pulses.worked(job.__name__, wall_clock())

        self._jobs.add_job(
            guarded, "interval", seconds=seconds, id=job.__name__, next_run_time=wall_clock()
        )

    def start(self) -> None:
        """Start firing; returns at once."""
        names = [job.id for job in self._jobs.get_jobs()]
        self.pulses.begin(self.service.ledger, names, wall_clock())
        self._jobs.start()

    def stop(self) -> None:
        """Finish what is running and stop."""
        self._jobs.shutdown(wait=True)
        with suppress(SQLAlchemyError):  # the ledger may be why we stop
            self.pulses.save(self.service.ledger)

    def run_forever(self, stop: threading.Event) -> None:
        """Run until told to stop."""
        self.start()
        stop.wait()
        self.stop()

    def poll_registry(self) -> bool:
        """Obey the aliases: a version moved to `champion` is prepared and handed to the workers.

        False when another process does so at the moment.
        """
        with held(self.service.ledger, "registry") as lease:
            if lease is not None:
                deploy_all(self.service, now=wall_clock())
            return lease is not None

    def heed_hints(self) -> None:
        """Poll the registry now if MLflow says that something has changed there."""
        hint = hints.noted(self.service.ledger)
        if hint != self._heeded and self.poll_registry():
            self._heeded = hint

    def run_checks(self) -> None:
        """Run every check that is due."""
        failed: Exception | None = None
        for model in self.service.registry.models():
            try:
                result = run_due(self.service, model, now=wall_clock())
            except Exception as error:  # one model's trouble must not blind us to the others
                log.exception("check_failed", extra={"model": model})
                self.service.ledger.count("check_failures", model=model)
                failed = error
                continue
            if result is not None:
                log.info(
                    "checked",
                    extra={"model": model, "state": result.check.state, "why": result.check.reason},
                )
        if failed is not None:
            raise failed

    def run_retraining(self) -> None:
        """Carry unfinished retraining runs forward, those of a process that died first of all, and
        tell what became of them.

        A model whose run cannot go on, because MLflow is out of reach say, is tried again after a
        pause that grows to a minute; others are not held up by it.
        """
        for model in run.unsettled(self.service.ledger):
            if monotonic() < self._later.get(model, (0, 0.0))[1]:
                continue
            with held(self.service.ledger, f"run:{model}") as lease:
                if lease is not None:
                    self._carry(model, lease)

    def _carry(self, model: str, lease: Lease) -> None:
        now = wall_clock()
        try:
            state = advance(self.service, model, at=now, wall=now, lease=lease)
        except LeaseLost as error:  # somebody ended the run, or another process carries it
            log.info("run_taken_over", extra={"model": model, "why": str(error)})
            return
        except Exception as error:
            attempts = self._later.get(model, (0, 0.0))[0]
            pause = _PAUSES[min(attempts, len(_PAUSES) - 1)]
            self._later[model] = (attempts + 1, monotonic() + pause)
            log.warning("run_waits", extra={"model": model, "why": str(error), "again_in": pause})
            if not isinstance(error, ShelflifeError | SQLAlchemyError):
                raise
            return
        self._later.pop(model, None)
        if state is not None and state.step == "serve" and not state.finished:
            deploy_all(self.service, now=now)  # promoted: hand it to the workers now

    def clean(self) -> None:
        """Remove work folders and prepared versions that nobody needs any more."""
        with held(self.service.ledger, "clean") as lease:
            if lease is not None:
                gone = clean(self.service, now=wall_clock())
                if gone:
                    log.info("cleaned", extra={"folders": len(gone)})

    def alerts(self) -> None:
        """Tell what time alone brings, and see whether the workers are alive."""
        with held(self.service.ledger, "alerts") as lease:
            if lease is not None:
                now = wall_clock()
                serving_watch.look(self.service, started=self._started, now=now)
                oncall.turn(self.service.ledger, self.service.settings, now=now)

    def deliver(self) -> None:
        """Send what is in the outbox."""
        delivery.deliver_due(self.service.ledger, self.receivers, now=wall_clock())

    def refresh(self) -> None:
        """Tell those who forget of what lasts."""
        now, ledger = wall_clock(), self.service.ledger
        if not refreshing.due(self.receivers, self._refreshed, now):
            return
        with held(ledger, "refresh") as lease:
            if lease is None:
                return
            done = refreshing.refresh_due(ledger, self.receivers, self._refreshed, now=now)
        for name, outcome in done.items():
            if not outcome.delivered:
                log.warning("refresh_failed", extra={"receiver": name, "why": outcome.error})

    def pulse(self) -> None:
        """Write down which jobs work."""
        self.pulses.worked(PULSE, wall_clock())
        self.pulses.save(self.service.ledger)

    def watch_itself(self) -> None:
        """Tell of it when nothing is checked or somebody is not told."""
        with held(self.service.ledger, "self") as lease:
            if lease is not None:
                now = wall_clock()
                self._self.look(self.problems(now), now=now)

    def beat(self) -> None:
        """Send a sign of life, unless the monitor is blind."""
        with held(self.service.ledger, "heartbeat") as lease:
            if lease is None:
                return
            now = wall_clock()
            blind = [one.text for one in self.problems(now) if one.severity == "page"]
            if blind:
                log.warning("heartbeat_withheld", extra={"why": blind})
            else:
                self.heartbeat.beat(now=now)

    def problems(self, now: datetime) -> list[Problem]:
        """What is wrong with the monitor itself."""
        facts = health.gather(self.service.ledger, self.service.home)
        models = health.served(self.service.home)
        return health.judge(facts, self.service.settings, models, now=now)

    def obey_commands(self) -> None:
        """Carry out what people asked for through the API or the dashboard."""
        with held(self.service.ledger, "commands") as lease:
            if lease is not None:
                commands.obey(self.service, now=wall_clock())

    def render_reports(self) -> None:
        """Render the Evidently reports that incidents want."""
        with held(self.service.ledger, "reports") as lease:
            if lease is not None:
                reports.render_wanted(self.service)

    def seal(self) -> None:
        """Move settled rows from the hot table into segments."""
        with held(self.service.ledger, "seal") as lease:
            if lease is not None:
                before = wall_clock() - _SEAL_AFTER
                self.service.log.seal(before=before, min_rows=_SEAL_ROWS)

    def tidy(self) -> None:
        """Merge small segments, delete what is older than it may be, sweep what a crash left."""
        with held(self.service.ledger, "tidy") as lease:
            if lease is not None:
                housekeeping.tidy(self.service, now=wall_clock())
