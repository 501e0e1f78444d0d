# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache sign STORE`."""

from __future__ import annotations

from pathlib import Path

import click

from ditr_cache.cli.options import StoreLocation, reports
from ditr_cache.cli.output import Output

__all__ = ["command"]


@click.command(
    "sign",
    short_help="Vouch for a store with an Ed25519 key.",
    epilog="""\b
Examples:
  ditr-cache sign --new-key team.key.pem team.pub.pem
  ditr-cache sign rooms --key team.key.pem
  ditr-cache verify rooms --key team.pub.pem""",
)
@click.argument("store", type=StoreLocation(), required=False)
@click.option("--key", metavar="PRIVATE.pem", type=click.Path(path_type=Path), help="Sign with this key.")
@click.option(
    "--new-key",
    metavar="PRIVATE.pem PUBLIC.pem",
    nargs=2,
    type=click.Path(path_type=Path),
    help="Make a pair of keys instead. Files that are there are not overwritten.",
)
@reports()
def command(output: Output, store: Path | str | None, key: Path | None, new_key: tuple[Path, Path] | None) -> None:
    """Sign the current version of a store: the sha256 of its manifest, which has those of everything else.

    The signature lies beside the manifest. `verify --key` and `pull --key` check it. A store that changes has a new
    version, to be signed again. Needs the package cryptography (`ditr-cache[sign]`).
    """
    from ditr_cache.pipelines.sign import NewKeys, Sign

    if new_key is not None:
        if store is not None or key is not None:
            raise click.UsageError("--new-key makes keys, and signs nothing.")
        fingerprint = NewKeys(*new_key).run()
        output.document({"private": str(new_key[0]), "public": str(new_key[1]), "key": fingerprint})
        output.facts([("key", fingerprint)])
        output.status(f"Keep {new_key[0]} to yourself, and give {new_key[1]} to whom it may concern.")
        return
    if store is None or key is None:
        raise click.UsageError("Name a store and --key, or --new-key.")
    report = Sign(store, key).run()
    output.document(report.to_dict())
    output.facts([("manifest", report.manifest), ("key", report.key)])
