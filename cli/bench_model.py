# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache bench model [STORE]`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ditr_cache.cli.options import StoreLocation, cache_options, config_options, reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.progress import progress_for
from ditr_cache.cli.text import bytes_, number, plural

if TYPE_CHECKING:
    from ditr_cache.pipelines.bench_memory import Peaks
    from ditr_cache.pipelines.bench_model import ModelBenchReport, Quartiles
    from ditr_cache.training.config import TrainConfig

__all__ = ["command"]

_NETWORKS = {"ptv3": "PTv3", "minkunet": "MinkUNet"}


@click.command(
    "model",
    short_help="What image features cost a network.",
    epilog="""\b
Examples:
  ditr-cache bench model
  ditr-cache bench model rooms -c tiny
  ditr-cache bench model scannet.store --backbone dinov2-reg-large
  ditr-cache bench model nus.store --weights dinov2-base/ --json""",
)
@click.argument("store", type=StoreLocation(), required=False)
@config_options("train", example="run.device=cpu")
@click.option("--backbone", metavar="NAME", help="ViT of the online network; by default the one of the store.")
@click.option(
    "--weights", type=click.Path(path_type=Path), metavar="DIR", help="The same, from a folder in Hugging Face layout."
)
@click.option(
    "--vit-dtype",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="What the ViT computes in; by default bf16 on CUDA and fp32 on a CPU.",
)
@click.option("--samples", type=click.IntRange(1), default=3, show_default=True, help="Clouds of the store.")
@click.option(
    "--points", type=click.IntRange(5), default=20_000, show_default=True, help="Of the generated cloud, without STORE."
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Measured calls of each network; at least one a cloud.",
)
@click.option("--no-memory", is_flag=True, help="Do not measure memory, which takes a process for each network.")
@cache_options
@reports()
def command(
    output: Output,
    store: Path | str | None,
    configs: tuple[str, ...],
    overrides: tuple[str, ...],
    backbone: str | None,
    weights: Path | None,
    vit_dtype: Literal["fp32", "bf16", "fp16"] | None,
    samples: int,
    points: int,
    rounds: int,
    no_memory: bool,
    cache_dir: Path | None,
    cache_size: int,
) -> None:
    """Time PTv3 alone, DITR from the store, and DITR with the ViT in every step, on the same clouds and views.

    A training step and a pass of evaluation on one cloud, and the memory of both. STORE gives the clouds; without it,
    the floor and the walls of a hall do. Images are noise of the right size, and decoded already; the online network
    shows them to the ViT and looks up one feature a point. The networks take turns, and ratios are of the same round.
    Settings are those of `ditr-cache train`. Weights of the networks are random, as are those of the ViT where its
    architecture is known without a download: neither time nor memory depends on them.
    """
    if backbone is not None and weights is not None:
        raise click.UsageError("--backbone and --weights exclude each other.")
    config, stored = _configure(output, store, configs, overrides)

    from ditr_cache.pipelines.bench_model import ModelBench
    from ditr_cache.pipelines.bench_vit import choose_vit
    from ditr_cache.training.distributed import pick_device

    cuda = pick_device(config.run.device).type == "cuda"
    vit = choose_vit(backbone, weights, stored, vit_dtype or ("bf16" if cuda else "fp32"), cuda=cuda)
    with progress_for(output, unit="steps") as progress:
        report = ModelBench(
            config,
            vit,
            store,
            samples=samples,
            points=points,
            rounds=rounds,
            memory=not no_memory,
            cache_dir=cache_dir,
            cache_size=cache_size,
            progress=progress,
        ).run()
    output.document(report.to_dict())
    _show(output, report)
    names = _names(report)
    lost = [names[name] for name, network in report.networks.items() if network.memory is None]
    if lost and not no_memory:
        output.warning(f"no memory of {' and '.join(lost)}: the system killed the process, as where memory runs out")


def _configure(
    output: Output, store: Path | str | None, configs: tuple[str, ...], overrides: tuple[str, ...]
) -> tuple[TrainConfig, dict[str, Any] | None]:
    """Settings as `train` takes them, and what the store says of its backbone."""
    from ditr_cache.cli.train import preset_layers
    from ditr_cache.config import load_config, read_named_yaml
    from ditr_cache.training.config import TrainConfig

    stored = None
    if store is not None:
        from ditr_cache.store.reader import open_store

        with open_store(store) as opened:
            backbone = opened.identity.get("backbone")
        stored = dict(backbone) if isinstance(backbone, dict) else {}
    layers, words = preset_layers(store, configs)
    output.status(f"settings: {' + '.join([*words, *overrides])}")
    return load_config(TrainConfig, [*layers, *(read_named_yaml("train", name) for name in configs)], overrides), stored


def _show(output: Output, report: ModelBenchReport) -> None:
    names = _names(report)
    rows = [
        [
            names[name],
            _ratio(network.training_ratio),
            _ratio(network.inference_ratio),
            _over(network.memory, report.networks["ptv3"].memory, "training"),
            _over(network.memory, report.networks["ptv3"].memory, "inference"),
        ]
        for name, network in report.networks.items()
        if name != "ptv3"
    ]
    paper = report.paper
    pairs = [(paper[key]["online"] / paper[key]["ptv3"]) for key in ("training_h", "inference_ms", "inference_gib")]
    rows.append(["paper, online", f"{pairs[0]:.2f}", f"{pairs[1]:.2f}", "-", f"{pairs[2]:.2f}"])
    output.table(
        ["", "training step", "inference", "memory, tr.", "memory, inf."],
        rows,
        title=f"Times {names['ptv3']} alone: median of rounds (quartiles)",
        right=(1, 2, 3, 4),
    )
    training, inference = (report.online_over_cached[what] for what in ("training", "inference"))
    output.line(f"Online over cached: training {_ratio(training)}, inference {_ratio(inference)}.")
    output.table(
        ["", "training s", "inference s", "of it ViT", "memory, tr.", "memory, inf."],
        [
            [
                names[name],
                f"{network.training_s.median:.3f}",
                f"{network.inference_s.median:.3f}",
                "-" if network.vit_s is None else f"{network.vit_s:.3f}",
                *(
                    "-" if network.memory is None else bytes_(getattr(network.memory, w))
                    for w in ("training", "inference")
                ),
            ]
            for name, network in report.networks.items()
        ],
        title="Medians here",
        right=range(1, 6),
    )
    output.facts(_facts(report), title="Measured on")
    output.facts(
        [
            ("training", f"{paper['training_h']['ptv3']} -> {paper['training_h']['online']} h"),
            ("inference", f"{paper['inference_ms']['ptv3']} -> {paper['inference_ms']['online']} ms a scene"),
            ("memory", f"{paper['inference_gib']['ptv3']} -> {paper['inference_gib']['online']} GiB, in inference"),
            ("measured on", paper["measured_on"]),
            ("source", f"{paper['source']}; other code and other machines than here"),
        ],
        title="The paper: PTv3 -> DITR, which is online",
    )


def _names(report: ModelBenchReport) -> dict[str, str]:
    return {"ptv3": _NETWORKS[report.network], "cached": "DITR, cached", "online": "DITR, online"}


def _facts(report: ModelBenchReport) -> Iterator[tuple[str, object]]:
    yield "device", f"{report.device}, {plural(report.threads, 'thread')}; training in {_amp(report.amp)}"
    sizes = ", ".join(f"{height}x{width}" for height, width in report.images)
    what = f"{plural(len(report.samples), 'sample')} of {report.store}" if report.store else "a generated hall"
    yield "cloud", f"{what}: {number(report.points)} points, {plural(report.views, 'view')} of {sizes}"
    yield "features", f"{number(report.rows)} rows of {report.dim} channels"
    random = "; random weights" if report.random_weights else ""
    yield "ViT", f"{report.vit} ({report.vit_why}{random}) in {report.vit_dtype}"
    yield "network", f"{number(report.networks['cached'].parameters)} parameters, random weights"
    yield "rounds", number(report.rounds)
    if report.read_s is not None:
        yield "reading", f"{1000 * report.read_s:.1f} ms a cloud from the store, in no number above"


def _amp(name: str) -> str:
    return "fp32" if name == "off" else name


def _ratio(found: Quartiles) -> str:
    return f"{found.median:.2f} ({found.q1:.2f}-{found.q3:.2f})"


def _over(memory: Peaks | None, plain: Peaks | None, what: str) -> str:
    if memory is None or plain is None:
        return "-"
    return f"{getattr(memory, what) / getattr(plain, what):.2f}"
