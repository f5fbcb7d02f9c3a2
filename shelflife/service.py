"""One installation of shelflife: its settings, its three stores, and what is cheap to remember."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from core.ledger import Ledger
from core.settings import ModelSettings, Settings, load, revealed
from monitor.alert.messages import MessageContext
from monitor.log.admission import Admission, Rule
from monitor.log.log import InferenceLog
from monitor.log.privacy import privacy_of
from monitor.log.storage import open_storage
from shelflife import oncall

if TYPE_CHECKING:
    import pandas as pd
    import sqlalchemy as sa

    from monitor.baseline import Baseline
    from monitor.log.records import SampleLog
    from registry.versions import Registry, Version
    from retrain.observing import Learned
    from retrain.run import RunContext

SETTINGS_FILE = "shelflife.yaml"


def wall_clock() -> datetime:
    """The real time. Only this package's processes read it; everything below is told."""
    return datetime.now(UTC)


def _rule(settings: ModelSettings, where: str) -> Rule:
    return Rule(rate=settings.sample_rate, privacy=privacy_of(settings.privacy, where))


class Service:
    """The stores behind a settings file, opened when first used."""

    foresees = True  # checks forecast the shelf life and ask old versions in shadow

    def __init__(self, settings: Settings, *, folder: Path | None = None) -> None:
        self.settings = settings
        self.folder = folder or Path.cwd()  # of the settings file; a user's trainer lies there
        self.home = settings.home_path
        self.remembered: dict[tuple[str, str], tuple[Baseline, pd.DataFrame]] = {}

    @classmethod
    def open(cls, path: str | Path | None = None) -> Service:
        """The service of a settings file: the one given, `$SHELFLIFE_SETTINGS`, `shelflife.yaml`.

        Without any of them the defaults apply, with everything kept in `.shelflife` here.

        Raises:
            SettingsError: the file does not exist or is wrong.
        """
        named = path or os.environ.get("SHELFLIFE_SETTINGS")
        if named is None and not Path(SETTINGS_FILE).is_file():
            return cls(Settings(home=str(Path(".shelflife").resolve())))
        file = Path(named or SETTINGS_FILE)
        settings = load(file)
        oncall.check_settings(settings)
        return cls(settings, folder=file.resolve().parent)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.settings.ledger_url).create()

    def joined(self) -> Service:
        """The same installation for a process whose parent has looked the ledger's tables over:
        doing that again takes 10 MB."""
        twin = Service(self.settings, folder=self.folder)
        twin.__dict__["ledger"] = Ledger(self.settings.ledger_url)
        return twin

    @property
    def log(self) -> SampleLog:
        """The inference log as everybody reads and writes it."""
        return self.inference_log

    @cached_property
    def inference_log(self) -> InferenceLog:
        """The log with its store, for those who look after it."""
        settings = self.settings
        rules = {
            name: _rule(model, f"models.{name}.privacy") for name, model in settings.models.items()
        }
        default = _rule(settings.defaults, "defaults.privacy")
        return InferenceLog(
            self.ledger,
            open_storage(settings.segments_place, revealed(settings.segments_options)),
            admission=Admission(lambda model: rules.get(model, default)),
            clock=wall_clock,
        )

    @cached_property
    def registry(self) -> Registry:
        from registry.versions import Registry

        registry = Registry(
            self.settings.tracking_uri, self.settings.artifact_root, self.home / "cache"
        )
        registry.prepare()
        return registry

    def model(self, name: str) -> ModelSettings:
        return self.settings.model(name)

    #: Lessons of earlier observations; a service learns them anew (`retrain.observing.look`).
    learned: Learned | None = None

    def observes(self, model: str) -> bool:
        """Whether the champion is observed; it is under any policy, for people to see."""
        return True

    def baseline(self, version: Version) -> tuple[Baseline, pd.DataFrame]:
        """The baseline of a version and its reference sample; remembered, since they never change.

        Raises:
            RegistryError: the version has none: it was not registered through shelflife.
        """
        import pandas as pd

        from monitor.baseline import load as load_baseline

        key = (version.model, version.version)
        if key not in self.remembered:
            raw = self.registry.file(version, "reference.parquet")
            reference = pd.read_parquet(io.BytesIO(raw))
            self.remembered[key] = (
                load_baseline(self.registry.file(version, "baseline.json")),
                reference,
            )
        return self.remembered[key]

    def context(self, model: str, version: Version | None, *, command: str = "") -> MessageContext:
        """What every message about a model says besides its finding."""
        ui = self.mlflow_ui
        return oncall.context(
            self.settings,
            model,
            version=version.version if version else "",
            mlflow_url=ui + self.registry.url(version) if version else ui,
            command=command,
        )

    def run_context(
        self,
        model: str,
        *,
        guard: Callable[[sa.Connection], None],
        beat: Callable[[], None] = lambda: None,
    ) -> RunContext:
        """What a retraining run of the model works with."""
        from retrain.run import RunContext

        return RunContext(
            registry=self.registry,
            ledger=self.ledger,
            log=self.log,
            settings=self.model(model),
            home=self.home,
            user_folder=self.folder,
            guard=guard,
            beat=beat,
        )

    @property
    def mlflow_ui(self) -> str:
        """Where the MLflow UI is to be found."""
        chosen = self.settings.mlflow
        return chosen.ui or f"http://{self.settings.serving.host}:{chosen.port}"

    def close(self) -> None:
        if "ledger" in self.__dict__:
            self.ledger.close()
