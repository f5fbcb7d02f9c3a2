"""The demo from an empty folder to its summary, and on until Ctrl-C."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd

from core.settings import load
from monitor.alert import delivery, receivers
from monitor.log.records import Prediction
from registry.store import import_mlflow
from shelflife import commands, reports
from shelflife.demo import story, summary
from shelflife.demo.receiver import OnCall
from shelflife.demo.replay import Caller, wait_ready
from shelflife.demo.screen import Screen
from shelflife.deploying import deploy_all
from shelflife.register import register
from shelflife.runs import advance
from shelflife.service import Service, wall_clock
from shelflife.supervisor import Supervisor, parts
from shelflife.tick import tick

_READY = 60.0  # seconds for the serving process to answer
_REPORTS = timedelta(days=160)  # of event time between two batches of Evidently reports


class Demo:
    """One demo.

    Args:
        folder: everything is kept here; emptied first.
        leave: end after the summary instead of staying up.
        as_json: the summary as JSON on stdout.
        until: replay only the invoices before this moment; all of them if not given.
    """

    def __init__(
        self, folder: Path, *, leave: bool, as_json: bool = False, until: datetime | None = None
    ) -> None:
        self.folder, self.leave, self.as_json = folder.resolve(), leave, as_json
        self.until = until
        self.screen = Screen(quiet=as_json)
        self.events: list[summary.Event] = []
        self.now = self._reported = story.START
        self._reporting = threading.Thread()
        self._started = time.monotonic()

    def run(self) -> int:
        """Run it; returns the exit status."""
        os.environ["SHELFLIFE_DEMO_SECRET"] = _secret()
        on_call = OnCall(os.environ["SHELFLIFE_DEMO_SECRET"])
        service = self._settle_in(on_call.url)
        self.screen.title(story.ABOUT)
        stream = story.stream(until=self.until)
        import_mlflow()  # before there are threads
        opening = threading.Thread(target=lambda: service.registry)
        opening.start()  # MLflow migrates its new store for seconds; we train meanwhile
        estimator = self._train(stream)
        opening.join()
        self._first_version(service, stream, estimator)
        deploy_all(service, now=self.now)
        file = str(self.folder / "shelflife.yaml")
        wanted = ("serve",) if self.leave else ("serve", "dashboard", "mlflow")
        running = parts(service.settings, file, only=wanted, replay=True)
        supervisor = Supervisor(running, service.home / "logs", self.screen.say)
        supervisor.start()
        caller = None
        try:
            serving = service.settings.serving
            wait_ready(serving.host, serving.port, timeout=_READY, alive=_nothing)
            if not self.leave:
                self.screen.addresses(running)
            caller = Caller(stream, serving.host, serving.port)
            self._replay(service, stream, caller)
            self._finish(service, stream, caller, on_call)
            if not self.leave:
                self.screen.addresses(running)
                self._stay(service)
        finally:
            if caller is not None:
                caller.close()
            supervisor.stop()
            on_call.close()
            service.close()
        return 0

    def _settle_in(self, receiver: str) -> Service:
        if self.folder.exists():
            _empty(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = {"serving": _port(8080), "dashboard": _port(8501), "mlflow": _port(5000)}
        file = self.folder / "shelflife.yaml"
        file.write_text(story.SETTINGS.format(receiver=receiver, **ports))
        return Service(load(file))

    # --- version 1 -----------------------------------------------------------------------------

    def _train(self, stream: pd.DataFrame) -> object:
        known = stream[stream["label_time"] <= story.START]
        self.screen.say(f"training version 1 on {len(known):,} invoices labelled by 1 April 2010")
        return story.first_model().fit(known[story.INPUTS], known[story.TARGET])

    def _first_version(self, service: Service, stream: pd.DataFrame, estimator: object) -> None:
        known = stream[stream["label_time"] <= story.START]
        columns = [*story.INPUTS, story.TARGET, "invoice", "invoice_time", "label_time"]
        version = register(
            story.MODEL,
            estimator,
            reference=known[columns],
            target=story.TARGET,
            time="invoice_time",
            label_time="label_time",
            id="invoice",
            service=service,
            by="demo",
            now=story.START,
            progress=self.screen.say,
        )
        self._keep_unlabelled(service, stream, version.version)
        expected = service.baseline(version)[0].expected
        shown = f"expected Brier {expected.value:.3f}" if expected else "no expectation"
        self._event(story.START, "promoted", f"v1 trained, registered, champion: {shown}")

    def _keep_unlabelled(self, service: Service, stream: pd.DataFrame, version: str) -> None:
        """Invoices of March 2010: nobody asked us about them, but their labels will teach."""
        waiting = stream[
            (stream["invoice_time"] < story.START) & (stream["label_time"] > story.START)
        ]
        values = waiting[story.INPUTS].astype(object).where(waiting[story.INPUTS].notna(), None)
        rows = [
            Prediction(
                model=story.MODEL, id=name, version=version, time=moment,
                inputs={str(column): value for column, value in inputs.items()},
                outputs={}, role="history", source=f"history/{story.MODEL}",
            )
            for name, moment, inputs in zip(
                waiting["invoice"], waiting["invoice_time"], values.to_dict("records"), strict=True
            )
        ]  # fmt: skip
        service.log.append(rows, received=story.START)

    # --- the replay ----------------------------------------------------------------------------

    def _replay(self, service: Service, stream: pd.DataFrame, caller: Caller) -> None:
        times = stream["invoice_time"]
        first = int((times < story.START).sum())
        total, at, sent = len(stream), story.START, first
        with self.screen.progress(total - first) as advanced:
            # Requests may all be out during the last but one check; its week's labels are not.
            while sent < total or at <= times.iloc[-1]:
                upto = at + story.STEP
                end = int((times < upto).sum())
                caller.send(range(sent, end))
                advanced(end - sent, upto, self._state)
                sent = end
                learned = stream["label_time"]
                caller.label(stream[(learned > at) & (learned <= upto)])
                at = self.now = upto
                following = int((times < at + story.STEP).sum())
                with self._trickle(caller, range(sent, following)) as trickled:
                    self._tick(service, at)
                advanced(trickled[0], at, self._state)
                sent += trickled[0]

    _state = ""

    @contextmanager
    def _trickle(self, caller: Caller, rows: range) -> Iterator[list[int]]:
        """Callers do not wait for checks and runs: requests go on, slowly, while we work."""
        done, count = threading.Event(), [0]

        def send() -> None:
            count[0] = caller.trickle(rows, done)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            yield count
        finally:
            done.set()
            thread.join()

    def _tick(self, service: Service, at: datetime) -> None:
        """What the scheduler does when a check is due, on the replay's clock."""
        found = tick(service, story.MODEL, at=at)
        if found is not None:
            self._state = found.check.state
            self._tell_changes(service, found.opened, found.resolved, at)
            self.events += summary.decisions(found, at)
            if found.run_id is not None:
                self._event(at, "retraining", f"run {found.run_id}: {found.decision.reason}")
            if found.rolled_back:
                self._event(at, "rollback", found.decision.reason)
                deploy_all(service, now=at)
        self._carry_run(service, at)
        delivery.deliver_due(
            service.ledger, receivers.build(service.settings.receivers), now=wall_clock()
        )
        if at.day <= 7:  # once a month of event time: settled rows become segments
            service.log.seal(before=wall_clock())
        self._render_reports(service)

    def _render_reports(self, service: Service) -> None:
        """Every few months of event time, beside the replay: the end should not wait for all."""
        if self._reporting.is_alive() or self.now - self._reported < _REPORTS:
            return
        self._reported = self.now
        render = threading.Thread(target=reports.render_wanted, args=(service,), daemon=True)
        render.start()
        self._reporting = render

    def _carry_run(self, service: Service, at: datetime) -> None:
        deadline = time.monotonic() + 10 * _READY  # a run has limits of its own; this is a net
        while (state := advance(service, story.MODEL, at=at, wall=wall_clock())) is not None:
            if state.state != "running":
                kind = {"promoted": "promoted", "refused": "rejected"}.get(state.state, state.state)
                self._event(at, kind, f"v{state.candidate}: {state.outcome}")
                return
            deploy_all(service, now=at)  # promoted: hand it to the workers, then ask again
            if time.monotonic() > deadline:
                raise RuntimeError(f"run {state.id} did not finish: {state}")
            time.sleep(0.1)

    def _tell_changes(
        self, service: Service, opened: tuple[int, ...], resolved: tuple[int, ...], at: datetime
    ) -> None:
        for row in summary.incidents_of(service.ledger, [*opened, *resolved]):
            if row.id in opened:
                self._event(at, row.severity, row.title)
            else:
                self._event(at, "resolved", f"{row.cause} of {row.opened:%d %b %Y} is over")

    def _event(self, at: datetime, kind: str, text: str) -> None:
        event = summary.Event(at=at, kind=kind, text=text)
        self.events.append(event)
        self.screen.event(event)

    # --- the end -------------------------------------------------------------------------------

    def _finish(
        self, service: Service, stream: pd.DataFrame, caller: Caller, on_call: OnCall
    ) -> None:
        self.screen.say("rendering the Evidently reports of the incidents")
        if self._reporting.is_alive():
            self._reporting.join()
        while reports.render_wanted(service):
            pass
        deliver = receivers.build(service.settings.receivers)
        delivery.deliver_due(service.ledger, deliver, now=wall_clock())
        result = summary.collect(
            service,
            stream,
            caller.tally,
            on_call,
            self.events,
            at=self.now,
            seconds=time.monotonic() - self._started,
        )
        summary.write(self.folder / "summary.json", result)
        if self.as_json:
            sys.stdout.write((self.folder / "summary.json").read_text())
        else:
            self.screen.summary(result, on_call.messages)

    def _stay(self, service: Service) -> None:
        """Obey moved aliases and commands until Ctrl-C, on the stream's last day."""
        stop = threading.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: stop.set())
        deliver = receivers.build(service.settings.receivers)
        self.screen.say("everything stays up until Ctrl-C; moved aliases are obeyed")
        while not stop.wait(1.0):
            for model in deploy_all(service, now=self.now):
                champion = service.registry.by_alias(model, "champion")
                self.screen.say(f"{model}: now serving v{champion.version if champion else '–'}")
            commands.obey(service, now=self.now)
            advance(service, story.MODEL, at=self.now, wall=wall_clock())
            delivery.deliver_due(service.ledger, deliver, now=wall_clock())
            reports.render_wanted(service)


def _nothing() -> None:
    """The supervisor watches the processes; waiting for readiness has its own limit."""


def _secret() -> str:
    return "whsec_" + b64encode(secrets.token_bytes(24)).decode()


def _empty(folder: Path) -> None:
    """Remove an earlier demo, and nothing that does not look like one."""
    known = {"shelflife.yaml", "home", "summary.json"}
    for path in folder.iterdir():
        if path.name not in known:
            raise SystemExit(f"{folder} holds {path.name}, which no demo made; choose --folder")
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _port(wanted: int) -> int:
    """The wanted port, or any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
