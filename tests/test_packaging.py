# SPDX-License-Identifier: Apache-2.0
"""What is declared is what is there: packages, links, pins, and the contents of the built wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
MAPPED = ("cli", "pipelines", "configs")


def _files(package: str) -> list[Path]:
    """Every file that belongs to the package, relative to the root; links are not followed."""
    return [
        Path(folder, name).relative_to(ROOT)
        for folder, _, names in os.walk(ROOT / package)
        for name in names
        if "__pycache__" not in folder and not name.startswith(".")
    ]


SOURCES = [file for package in ("ditr_cache", *MAPPED) for file in _files(package)]


def _installed(file: Path) -> str:
    """Where a source file lands in the wheel."""
    return (Path("ditr_cache") / file if file.parts[0] in MAPPED else file).as_posix()


def _dotted(file: Path) -> str:
    return ".".join(Path(_installed(file)).parent.parts)


def test_every_package_is_declared() -> None:
    found = {_dotted(file) for file in SOURCES if file.name == "__init__.py"}
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_folder_with_code_is_a_package() -> None:
    packages = {file.parent for file in SOURCES if file.name == "__init__.py"}
    assert {file.parent for file in SOURCES if file.suffix == ".py"} <= packages


@pytest.mark.parametrize("name", MAPPED)
def test_links_serve_type_checkers(name: str) -> None:
    assert PROJECT["tool"]["setuptools"]["package-dir"][f"ditr_cache.{name}"] == name
    assert os.readlink(ROOT / "ditr_cache" / name) == f"../{name}"
    assert (ROOT / "ditr_cache" / name / "__init__.py").is_file()


def test_constraints_pin_what_the_project_asks_for() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)] == []
    pins = {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}
    extras = PROJECT["project"]["optional-dependencies"]
    for text in (*PROJECT["project"]["dependencies"], *extras["dev"], *extras["fast"]):
        asked = Requirement(text)
        assert pins[canonicalize_name(asked.name)] in asked.specifier, text


def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in ("ditr_cache", *MAPPED):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    made = subprocess.run(
        [sys.executable, "-c", build, str(out)], cwd=source, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert {name for name in names if ".dist-info/" not in name} == {_installed(file) for file in SOURCES}
    assert {name.rpartition("/")[2] for name in names if ".dist-info/licenses/" in name} == {"LICENSE", "NOTICE"}
    assert "ditr-cache = ditr_cache.cli.main:main" in entry_points
    assert "License-Expression: Apache-2.0" in metadata
