# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, and what an import may cost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "zarr", "dask", "distributed"}

IMPORT_ALL = """
import importlib, pkgutil
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
"""


def _loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running `code`."""
    report = "\nimport json, sys\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + report], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", ["ditr_cache", "ditr_cache.types", "ditr_cache.config", "ditr_cache.cli.main"])
def test_light_modules_import_nothing_heavy(module: str) -> None:
    assert _loaded_after(f"import {module}") & HEAVY == set()


def test_readers_need_no_torch() -> None:
    loaded = _loaded_after(IMPORT_ALL.format(package="ditr_cache.datasets"))
    assert loaded & {"torch", "transformers"} == set()


def test_store_needs_no_transformers() -> None:
    assert "transformers" not in _loaded_after(IMPORT_ALL.format(package="ditr_cache.store"))


def test_public_name_is_found_on_first_use() -> None:
    assert "ditr_cache" in _loaded_after("import ditr_cache\nassert callable(ditr_cache.open_store)")


def test_top_level_folders_are_not_packages_of_their_own() -> None:
    """From outside the checkout, `import cli` must not find ours: the names belong to everyone."""
    code = "import importlib.util as u; print([n for n in ('cli', 'pipelines', 'configs') if u.find_spec(n)])"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_layers_hold() -> None:
    """Command line above pipelines above library; stores, readers and backbones apart (contract in pyproject.toml)."""
    tool = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert tool is not None
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
