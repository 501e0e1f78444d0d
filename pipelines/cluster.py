# SPDX-License-Identifier: Apache-2.0
"""Stage one on many processes and machines: a Dask scheduler distributes blocks, each by its name.

What a worker needs (data set, store, weights) it reads and writes itself, and what it returns is a few hundred bytes.
The commit protocol keeps the store whole whoever is killed, and however many drivers there are.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed import Client

from ditr_cache.backbones import load_backbone
from ditr_cache.config import ExtractConfig
from ditr_cache.datasets.base import Dataset
from ditr_cache.errors import RemoteError
from ditr_cache.pipelines.cluster_connect import Cluster
from ditr_cache.pipelines.cluster_queue import BlockQueue, connection_lost
from ditr_cache.pipelines.cluster_worker import BlockWorker, Job, Readiness, when_ready
from ditr_cache.pipelines.committer import FINALIZE_EVERY_S
from ditr_cache.pipelines.events import BlockState
from ditr_cache.pipelines.intent import changed_blocks, check_shard, count_images, open_run, plan_sha256
from ditr_cache.pipelines.outcome import BlockOutcome
from ditr_cache.pipelines.progress import Progress, Silent
from ditr_cache.pipelines.report import ExtractReport, summarise
from ditr_cache.pipelines.stages import full_disk
from ditr_cache.store.writer import StoreWriter
from ditr_cache.types import BlockPlan

__all__ = ["ClusterExtract"]


class ClusterExtract:
    """Runs stage one on the workers of a cluster; run it again to go on where it stopped.

    Args:
        dataset: Source of scenes; must be picklable, and its files at the same place for every worker.
        store: Where the store is, for every worker; created if need be.
        config: All settings.
        cluster: Where workers are.
        shard: (i, n): do the planned blocks with index mod n = i.
        redo: Do committed blocks again, as their next generation.
        retry: Only those of which something failed, or that the data set has otherwise now.
        progress: Who listens.
    """

    def __init__(
        self,
        dataset: Dataset,
        store: Path | str,
        config: ExtractConfig,
        cluster: Cluster,
        *,
        shard: tuple[int, int] = (0, 1),
        redo: bool = False,
        retry: bool = False,
        progress: Progress | None = None,
    ) -> None:
        check_shard(shard)
        self.dataset, self.location, self.config, self.cluster = dataset, store, config, cluster
        self.shard, self.redo, self.retry = shard, redo, retry
        self.progress: Progress = progress or Silent()
        self._stop = threading.Event()
        self._finalized = time.monotonic()

    def request_stop(self) -> None:
        """Stop soon: blocks at hand are given up, finished ones are finalised. Safe in signal handlers."""
        self._stop.set()

    def run(self) -> ExtractReport:
        """Extract what is not there yet.

        Raises:
            RemoteError: If the scheduler cannot be reached or is lost, or if workers cannot take part.
            IdentityMismatchError: If the store was made with other settings.
            StoreError: If the disk is full.
            DatasetError: If the data set cannot be planned.
            ConfigError: If the image size fits no patches of this backbone, or there is no such cluster.
        """
        with full_disk(self.location), self.cluster.connect() as client:
            return self._run(client)

    def _run(self, client: Client) -> ExtractReport:
        began = time.monotonic()
        plan = self.dataset.plan()
        config = self.cluster.adapt(self.config)
        # for its identity alone; workers load their own
        backbone = load_backbone(config.backbone.model_copy(update={"compile": False}), "cpu")
        store, mine, todo = open_run(
            self.dataset, plan, self.location, config, backbone, self.shard, redo=self.redo, retry=self.retry
        )
        del backbone
        outcomes: dict[str, BlockOutcome] = {}
        device = "-"
        self.progress.begin(sum(count_images(block.plan, config) for block in todo))
        try:
            if todo and not self._stop.is_set():
                outcomes, device = self._distribute(client, store, self._job(plan, config), todo)
            manifest = store.finalize()
        finally:
            self.progress.end()
        for outcome in outcomes.values():
            if outcome.committed and outcome.block not in manifest.blocks:
                reason = "a worker committed it, and it is not here: is the store the same folder on every machine?"
                outcomes[outcome.block] = replace(outcome, committed=False, failure=reason)
        return summarise(
            manifest,
            [block.id for block in mine],
            list(outcomes.values()),
            changed_blocks(mine, manifest, self.config),
            seconds=time.monotonic() - began,
            device=device,
            interrupted=self._stop.is_set(),
        )

    def _job(self, plan: Sequence[BlockPlan], config: ExtractConfig) -> Job:
        # workers may run in another folder than this process
        weights = config.backbone.weights
        if weights is not None:
            backbone = config.backbone.model_copy(update={"weights": _absolute(weights)})
            config = config.model_copy(update={"backbone": backbone})
        return Job(
            name=f"ditr-cache-{uuid.uuid4().hex}",
            dataset=self.dataset,
            location=_absolute(self.location),
            config=config,
            plan=plan_sha256(self.dataset, plan, config),
            ours=self.cluster.ours,
            cores=self.cluster.cores,
        )

    def _distribute(
        self, client: Client, store: StoreWriter, job: Job, todo: Sequence[BlockState]
    ) -> tuple[dict[str, BlockOutcome], str]:
        """Get `todo` done. Returns how blocks ended, and on what devices."""

        def meanwhile() -> None:
            if time.monotonic() - self._finalized > FINALIZE_EVERY_S:
                store.finalize(collect=False)
                self._finalized = time.monotonic()

        blocks = BlockQueue(client, job, self.progress, self._stop.is_set, meanwhile)
        try:
            devices = self._get_ready(client, job)
            # the longest first: at the end nobody waits for one that has just begun
            blocks.run(sorted(todo, key=lambda block: -count_images(block.plan, job.config)))
        except RemoteError:
            store.finalize(collect=False)
            raise
        finally:
            # those who are still at a block give it up
            with contextlib.suppress(OSError):
                if client.status == "running":
                    client.unregister_worker_plugin(job.name)
        for block, reason in blocks.failures_unrecorded().items():
            store.fail(block, reason)
        return blocks.outcomes, devices

    def _get_ready(self, client: Client, job: Job) -> str:
        """Load the ViT in every process that is there. Returns their devices.

        Raises:
            RemoteError: If one of them cannot take part. Those that come later and cannot are only left out.
        """
        try:
            client.register_plugin(BlockWorker(job), name=job.name)
            found = client.run(when_ready, job.name, on_error="return")
        except OSError as error:
            raise connection_lost() from error
        except Exception as error:
            raise RemoteError(f"the workers cannot be prepared ({type(error).__name__}: {error})") from error
        # one that died meanwhile is none that cannot take part
        ready = {worker: answer for worker, answer in found.items() if isinstance(answer, Readiness)}
        wrong = {worker: answer for worker, answer in ready.items() if answer.problem is not None}
        for worker, answer in wrong.items():
            raise RemoteError(
                f"cannot take part: {answer.problem}",
                where=f"worker {worker} on {answer.host}",
                hint=f"{len(wrong)} of {len(ready)} workers cannot. Data set, store and weights must be at the same "
                "place for all of them.",
            )
        counts = Counter(answer.device for answer in ready.values())
        return ", ".join(f"{count} x {device}" for device, count in sorted(counts.items())) or "-"


def _absolute(location: Any) -> Any:
    return Path(os.path.abspath(location)) if isinstance(location, Path) else location
