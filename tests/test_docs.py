# SPDX-License-Identifier: Apache-2.0
"""Every command and every snippet in the documentation runs as printed.

A fenced block of `console`, `bash`, `sh` or `python` is executed, document by document, in a fresh folder, in order.
The only way out is a comment with a reason on the line above the fence: `<!-- not run: needs a GPU -->`. In `console`
blocks lines that start with `$ ` (and `> ` continuations) are commands, the others are output for the reader.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docker/*.md"), *ROOT.glob("docs/**/*.md")]
)
RUN = frozenset({"console", "bash", "sh", "python"})
SHOWN = frozenset({"text", "json", "yaml", "toml", "dockerfile"})
FENCE = re.compile(r"^(`{3,})(\S*)\s*$")
NOT_RUN = re.compile(r"^<!--\s*not run:(.*)-->\s*$")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    line: int
    """Line number of its first line of content, 1-based."""
    language: str
    text: str
    reason: str | None
    """Why it is not run; None if it is."""


def _blocks(markdown: str) -> Iterator[Block]:
    lines = markdown.splitlines()
    i = 0
    while i < len(lines):
        opening = FENCE.match(lines[i])
        if opening is None:
            assert not lines[i].lstrip().startswith("```"), (
                f"line {i + 1}: write fences unindented, with one word at most"
            )
            assert NOT_RUN.match(lines[i]) is None or (i + 1 < len(lines) and FENCE.match(lines[i + 1])), (
                f"line {i + 1}: a `not run` comment belongs right above a fenced block"
            )
            i += 1
            continue
        start = i + 1
        end = next((j for j in range(start, len(lines)) if lines[j].rstrip() == opening[1]), None)
        assert end is not None, f"line {start}: this fence is never closed"
        assert opening[2] in RUN | SHOWN, f"line {start}: a fence of unknown language {opening[2]!r}"
        excuse = NOT_RUN.match(lines[i - 1]) if i else None
        assert excuse is None or excuse[1].strip(), f"line {i}: a `not run` comment needs a reason"
        yield Block(start + 1, opening[2], "\n".join(lines[start:end]), excuse[1].strip() if excuse else None)
        i = end + 1


def _commands(block: Block) -> str:
    if block.language != "console":
        return block.text
    lines = block.text.splitlines()
    return "\n".join(line[2:] for line in lines if line.startswith(("$ ", "> ")))


def _shell(block: Block, folder: Path) -> None:
    tools = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", _commands(block)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"line {block.line}: exit code {done.returncode}\n{done.stdout}{done.stderr}"


def _run(markdown: str, folder: Path, name: str) -> int:
    """Run a document in `folder`; the number of blocks that ran."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    todo = [block for block in _blocks(markdown) if block.language in RUN and block.reason is None]
    for block in todo:
        if block.language == "python":
            # leading newlines, so that a traceback names the line of the document
            exec(compile("\n" * (block.line - 1) + block.text, name, "exec"), namespace)
        else:
            _shell(block, folder)
    return len(todo)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_document_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _run(document.read_text("utf-8"), tmp_path, str(document))


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_links_lead_somewhere(document: Path) -> None:
    targets = [target for target in LINK.findall(document.read_text("utf-8")) if "://" not in target]
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_readme_shows_a_command_that_runs() -> None:
    blocks = list(_blocks((ROOT / "README.md").read_text("utf-8")))
    assert {b.language for b in blocks if b.reason is None} >= {"console", "python"}


def test_blocks_share_folder_and_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = """
```console
$ printf 'a' \\
>   > made
some output
```
```python
from pathlib import Path
text = Path("made").read_text()
```
```python
assert text == "a"
```
"""
    assert _run(document, tmp_path, "document") == 3


def test_reason_excuses_a_block(tmp_path: Path) -> None:
    assert _run("<!-- not run: it fails -->\n```bash\nfalse\n```\n", tmp_path, "document") == 0


@pytest.mark.parametrize(
    "document",
    [
        "```bash\nfalse\ntrue\n```",
        "```bash\nfalse | true\n```",
        "```console\n$ false\n```",
        "```python\nassert False\n```",
        "<!-- not run: -->\n```bash\ntrue\n```",
        "<!-- not run: too far above -->\n\n```bash\ntrue\n```",
        "```bash\ntrue\n",
        "```\ntrue\n```",
        "```pyhton\ntrue\n```",
        "- item\n  ```bash\n  true\n  ```",
    ],
)
def test_faults_are_found(document: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        _run(document, tmp_path, "document")
