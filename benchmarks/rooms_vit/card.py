# SPDX-License-Identifier: Apache-2.0
"""The parts of a model card that scripts write: blocks between `<!-- name -->` and `<!-- /name -->`."""

import re
from pathlib import Path

__all__ = ["update"]


def update(card: Path, name: str, text: str) -> None:
    """Replace the block of that name, or append it to a card that has none."""
    block = f"<!-- {name} -->\n{text.strip()}\n<!-- /{name} -->"
    old = card.read_text("utf-8") if card.exists() else ""
    pattern = re.compile(f"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
    new = pattern.sub(lambda _: block, old) if pattern.search(old) else f"{old.rstrip()}\n\n{block}\n".lstrip()
    card.write_text(new, "utf-8")
