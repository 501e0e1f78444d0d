# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache weights import|export|diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ditr_cache.cli.errors import ExitCode
from ditr_cache.cli.options import reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.text import number

__all__ = ["command"]

_EXISTING = click.Path(path_type=Path, exists=True)


@click.group(
    "weights",
    short_help="Official checkpoints in and out.",
    epilog="""\b
Examples:
  ditr-cache weights import model_best.pth scannet.safetensors
  ditr-cache weights export run ours.pth
  ditr-cache weights diff run model_best.pth""",
)
def command() -> None:
    """Exchange weights with Pointcept and DITR.

    A file is .safetensors or what torch.save wrote; a run stands for its best weights. Nothing in a file
    is ever run.
    """


@command.command("import", short_help="Official checkpoint to safetensors.")
@click.argument("file", type=_EXISTING)
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@reports()
def import_(output: Output, file: Path, out: Path) -> None:
    """Keep the weights of the checkpoint FILE, under our names, in OUT (.safetensors).

    Weights of Pointcept before v1.5.2 have the same names and shapes and belong to another network: they load, and
    cost 20 mIoU. Know where FILE is from.
    """
    from ditr_cache.models.weights import save_weights

    if out.suffix != ".safetensors":
        raise click.BadParameter("must end with .safetensors", param_hint="OUT")
    state = _read(file)
    save_weights(state, out)
    _show(output, state, out)


@command.command("export", short_help="Weights as Pointcept reads them.")
@click.argument("source", type=_EXISTING)
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@reports()
def export(output: Output, source: Path, out: Path) -> None:
    """Write the weights of SOURCE, a run or a file, to OUT (.pth) in the official layout."""
    from ditr_cache.models.weights import save_official

    if out.suffix == ".safetensors":
        raise click.BadParameter("is written by torch.save: name it .pth", param_hint="OUT")
    state = _read(source)
    save_official(state, out)
    _show(output, state, out)


@command.command("diff", short_help="Compare names and shapes.")
@click.argument("model", type=_EXISTING)
@click.argument("file", type=_EXISTING)
@reports()
def diff(output: Output, model: Path, file: Path) -> ExitCode:
    """List how the weights in FILE would fit where those of MODEL are; each is a run or a file.

    The exit code is 4 if they do not.
    """
    from ditr_cache.models.weights import compare

    report = compare(_read(model), _read(file))
    output.document(report.to_dict())
    for line in report.lines():
        output.line(line)
    output.status(f"{number(report.fitting)} entries fit")
    return ExitCode.OK if report.ok else ExitCode.MISMATCH


def _read(path: Path) -> dict[str, Any]:
    """Weights of a run or a file."""
    from ditr_cache.errors import CheckpointError
    from ditr_cache.models.weights import load_weights

    if not path.is_dir():
        return load_weights(path)
    from ditr_cache.training.run_folder import RunFolder

    checkpoints = RunFolder(path).checkpoints
    found = checkpoints.find("best") or checkpoints.find("last")
    if found is None:
        raise CheckpointError("no saved weights here", where=path, hint="Name the folder of a run, or a file.")
    return load_weights(found.folder / "model.safetensors")


def _show(output: Output, state: dict[str, Any], out: Path) -> None:
    entries, parameters = len(state), sum(t.numel() for n, t in state.items() if not _is_buffer(n))
    output.document({"path": str(out), "entries": entries, "parameters": parameters})
    output.facts([("weights", out), ("entries", number(entries)), ("parameters", number(parameters))])


def _is_buffer(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))
