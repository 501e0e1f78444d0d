# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache doctor`."""

from __future__ import annotations

import click

from ditr_cache.cli.options import reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.text import bytes_

__all__ = ["command"]


@click.command(
    "doctor",
    short_help="What is installed here, and what it can do.",
    epilog="\b\nExamples:\n  ditr-cache doctor\n  ditr-cache doctor --json > for-the-bug-report.json",
)
@reports()
def command(output: Output) -> None:
    """Report versions, devices, decoders, backbones and disk space; for bug reports, too."""
    from ditr_cache.pipelines.doctor import Doctor

    report = Doctor().run()
    output.document(report.to_dict())
    output.facts(
        [
            ("ditr-cache", report.version),
            ("Python", f"{report.python} on {report.platform}"),
            ("device", ", ".join(report.cuda_devices) or f"CPU, {report.cores} cores"),
            ("JPEG decoder", report.jpeg_decoder),
            ("free disk here", bytes_(report.free_bytes)),
            ("data sets", ", ".join(report.datasets)),
        ]
    )
    output.facts([(p.name, p.version or "MISSING") for p in report.required], title="Packages")
    output.table(
        ["package", "version", "for"],
        [[p.name, p.version or "not installed", p.purpose] for p in report.optional],
        title="Optional",
    )
    output.table(
        ["backbone", "patch", "channels", "licence", "weights"],
        [[b.name, b.patch_size, b.dim, b.licence, "here" if b.weights else "from the hub"] for b in report.backbones],
        title="Backbones",
        right=(1, 2),
    )
    if not report.cuda_devices:
        output.warning(f"no CUDA device: the ViT runs on the CPU, which is many times slower ({report.cuda_reason})")
    missing = [p.name for p in report.required if p.version is None]
    if missing:
        output.warning(f"missing packages: {', '.join(missing)}; install ditr-cache again")
