# SPDX-License-Identifier: Apache-2.0
"""A distilled network, from its run folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ditr_cache.config import load_config
from ditr_cache.errors import CheckpointError, ConfigError, WeightsError
from ditr_cache.models.distiller import Distiller
from ditr_cache.models.segmentor import Segmentor
from ditr_cache.models.weights import compare
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.distill_config import DistillConfig
from ditr_cache.training.run_folder import RunFolder

__all__ = ["Distilled", "distiller", "load_distilled", "origin", "start_from_distilled"]


def distiller(config: DistillConfig, image_channels: tuple[int, ...], names: tuple[str, ...]) -> Distiller:
    """The network of the settings; its weights are to be drawn or loaded.

    Args:
        config: All settings.
        image_channels: D of each name.
        names: What the stores are called, each name once.
    """
    own = names if len(names) > 1 else ()
    model = config.model.model_copy(update={"norm_conditions": own if config.distill.separate_norms else ()})
    heads = own if config.distill.separate_heads else ()
    dims = image_channels if heads else image_channels[:1]
    with torch.device("meta"):
        network = Distiller(model, config.data.channels, dims, heads)
    return network.to_empty(device="cpu")


@dataclass(frozen=True, slots=True, eq=False)
class Distilled:
    """What a run of `distill` left."""

    model: Distiller
    config: DistillConfig
    names: tuple[str, ...]
    """What its stores are called, each name once."""
    record: dict[str, Any]
    """Of the run folder."""
    checkpoint: Path

    def condition(self, name: str | None, dataset: str) -> str | None:
        """Whose norm layers and head to take; None where they are shared.

        Args:
            name: The one that is wanted; None: that of the data set.
            dataset: Name of a store's data set.

        Raises:
            ConfigError: If it is not among them, or not clear.
        """
        wanted = name or (dataset if len(self.names) > 1 else self.names[0])
        if wanted not in self.names:
            raise ConfigError(
                f"no store of the distillation is called {wanted!r}",
                where="init.norms",
                hint=f"Name one of {', '.join(self.names)}: -s init.norms=NAME, or, in evaluate, --norms NAME.",
            )
        return wanted if len(self.names) > 1 else None


def load_distilled(path: Path, which: Literal["last", "best"] = "last") -> Distilled:
    """Read a run folder.

    Args:
        path: The folder.
        which: The official code fine-tunes the last weights.

    Raises:
        CheckpointError: If it is not a run of `distill`, or has nothing saved.
    """
    folder = RunFolder(path)
    folder.check_kind("distill")
    config, record = load_config(DistillConfig, [folder.config()]), folder.run()
    found = folder.checkpoints.find(which) or folder.checkpoints.find("last")
    if found is None:
        raise CheckpointError(
            "nothing has been saved here yet", where=path, hint="Go on: ditr-cache distill STORE... RUN --resume"
        )
    try:
        names = tuple(dict.fromkeys(str(store["name"]) for store in record["stores"]))
        model = distiller(config, tuple(map(int, record["image_channels"])), names)
        model.load_state_dict(found.weights())
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError("the weights are not those of this run's settings", where=found.folder) from error
    return Distilled(model, config, names, record, found.folder)


def origin(path: Path) -> dict[str, Any]:
    """What a run that starts from a distillation keeps of it: which weights, and of which features.

    Raises:
        CheckpointError: If it is not a run of `distill`, or has nothing saved.
    """
    folder = RunFolder(path)
    found = folder.checkpoints.find("last")
    if found is None:
        raise CheckpointError("nothing has been saved here yet", where=path)
    weights = (found.folder / "model.safetensors").read_bytes()
    return {
        "run": str(path),
        "step": found.step,
        "total": found.state().get("total"),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "stores": [{key: store.get(key) for key in ("name", "digest")} for store in folder.run()["stores"]],
    }


def start_from_distilled(model: Segmentor, config: TrainConfig, dataset: str) -> None:
    """Give a network the weights of a distilled one, all but the head (section 3.2, image-free inference).

    Layers that inject image features, which no distilled network has, stay as they are.

    Args:
        model: Changed in place.
        config: With `init.distilled`.
        dataset: Name of the store's data set.

    Raises:
        CheckpointError: If there is no such run.
        ConfigError: If it is not clear whose norm layers to take.
        WeightsError: If the networks differ.
    """
    assert config.init.distilled is not None
    if config.model.norm_conditions:
        raise ConfigError(
            "a distilled network has one data set's norm layers at a time",
            where="model.norm_conditions",
            hint="Leave them out, and choose with -s init.norms=NAME.",
        )
    source = load_distilled(config.init.distilled)
    if source.config.data.features != config.data.features:
        raise ConfigError(
            f"the distilled network is shown {', '.join(source.config.data.features)}",
            where="data.features",
            hint=f"Set -s data.features=[{','.join(source.config.data.features)}]",
        )
    networks = source.config.model.network, config.model.network
    if networks[0] != networks[1]:
        raise WeightsError(
            f"the distilled network is a {networks[0]}, the settings are of a {networks[1]}",
            where=config.init.distilled,
            hint=f"Set -s model.network={networks[0]}",
        )
    state = source.model.plain_backbone(source.condition(config.init.norms, dataset))
    own = model.backbone.state_dict()
    report = compare(own, state)
    if report.unexpected or report.mismatched or (report.missing and config.model.injection == "none"):
        raise WeightsError(
            "the distilled network is another one:\n" + "\n".join(f"  {line}" for line in report.lines()[:20]),
            where=config.init.distilled,
            hint="Take its settings: the section `model` of its config.yaml.",
        )
    model.backbone.load_state_dict({**own, **state})
