"""Is the artifact that MLflow would give still the one that was judged?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UntrustedArtifact

if TYPE_CHECKING:
    from registry.versions import Registry, Version


def verify(registry: Registry, version: Version, sha256: str) -> None:
    """Download a version's files from where MLflow keeps them, and compare their hash.

    Raises:
        UntrustedArtifact: the recorded hash or the files are not `sha256`.
        RegistryError: MLflow cannot give the files.
    """
    from registry.artifacts import sha256_model

    what = f"version {version.version} of {version.model}"
    if version.sha256 != sha256:
        raise UntrustedArtifact(
            f"{what} has sha256 {version.sha256[:12]}…, the gate judged {sha256[:12]}…; "
            "register it anew"
        )
    with tempfile.TemporaryDirectory(prefix="shelflife-verify-") as work:
        folder = registry.download(f"models:/{version.model}/{version.version}", Path(work, "m"))
        found = sha256_model(folder)
    if found != sha256:
        raise UntrustedArtifact(
            f"{what}: its files have sha256 {found[:12]}… in the artifact store, the gate judged "
            f"{sha256[:12]}…; somebody changed them since. They are not promoted; register them "
            "as a new version, which the gate then judges"
        )
