"""The house stands: packages, their names, what may import what, and what is light."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "monitor", "registry", "retrain", "serving", "dashboard", "shelflife")
#: What each room may import of ours; docs/architecture.md draws it.
ALLOWED = {
    "core": set(),
    "monitor": {"core"},
    "registry": {"core"},
    "retrain": {"core", "monitor", "registry"},
    "serving": {"core", "monitor", "registry"},
    "dashboard": {"core", "monitor", "registry", "retrain", "serving"},
    "shelflife": {"core", "monitor", "registry", "retrain", "serving", "dashboard"},
}
#: Engines that one room hides from the others.
ADAPTERS = {
    "mlflow": ("registry/", "shelflife/doctor.py"),
    "evidently": ("monitor/report.py", "monitor/named.py"),
    "streamlit": ("dashboard/",),
    "apscheduler": ("shelflife/scheduler.py",),
    "uvicorn": ("shelflife/server.py",),
}


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Dotted names a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_downward(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        ours = {name.split(".")[0] for name in imported(path)} & set(PACKAGES)
        assert ours <= ALLOWED[package] | {package}, f"{path} imports {ours - ALLOWED[package]}"


def test_each_engine_is_behind_its_adapter() -> None:
    for path in modules():
        name = path.relative_to(ROOT).as_posix()
        for engine, homes in ADAPTERS.items():
            uses = any(found.split(".")[0] == engine for found in imported(path))
            assert not uses or name.startswith(homes), f"{name} imports {engine}"


def test_nobody_else_owns_our_package_names() -> None:
    owners = importlib.metadata.packages_distributions()
    for package in PACKAGES:
        assert set(owners.get(package, [])) <= {"shelflife"}
    folders = {Path(str(importlib.import_module(p).__file__)).parents[1] for p in PACKAGES}
    assert folders == {ROOT}


def test_the_dashboard_shadows_nothing() -> None:
    # Streamlit puts dashboard/ first on sys.path.
    taken = set(importlib.metadata.packages_distributions()) | set(PACKAGES)
    taken |= set(sys.stdlib_module_names)
    names = {path.stem for path in (ROOT / "dashboard").glob("*.py")} - {"__init__"}
    assert not names & taken


def test_tests_are_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_every_dependency_imports() -> None:
    # Evidently and pandas resolve to a pair that cannot be imported unless pandas is pinned.
    code = "import evidently, pandas, mlflow, sklearn, streamlit, sqlalchemy, apscheduler, skops"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize("module", ["shelflife", "shelflife.cli"])
def test_the_face_is_light(module: str) -> None:
    heavy = "{'pandas', 'sklearn', 'mlflow', 'evidently', 'streamlit', 'sqlalchemy', 'numpy'}"
    code = f"import sys, {module}; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_serving_process_is_light() -> None:
    heavy = "{'pandas', 'sklearn', 'mlflow', 'evidently', 'streamlit'}"
    code = f"import sys, shelflife.server; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_are_small_rooms() -> None:
    for path in modules():
        lines = len(path.read_text().splitlines())
        assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines"
