# SPDX-License-Identifier: Apache-2.0
"""The order of things in a run, with a network of one layer."""

import json
import math
import threading
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ditr_cache.config import load_config
from ditr_cache.errors import CheckpointError, ConfigError, TrainingError
from ditr_cache.models.distiller import NOT_VISIBLE
from ditr_cache.training.checkpoint import Checkpoints
from ditr_cache.training.config import LossConfig, TrainConfig
from ditr_cache.training.distributed import World
from ditr_cache.training.loop import Loop
from ditr_cache.training.metrics import ConfusionMatrix
from ditr_cache.training.objective import CosineObjective, SegmentationObjective
from ditr_cache.training.optim import build_optimizer
from ditr_cache.training.schedule import OneCycle
from ditr_cache.training.seeding import torch_generator_for
from ditr_cache.training.step import Precision, Step
from ditr_cache.training.tracking import JsonLog, Nobody, Trackers
from ditr_cache.types import FactoredFeatures, PointBatch

STEPS = 4
CPU = torch.device("cpu")


class Net(nn.Module):
    """Class scores of points, with noise from the generator, and a batch norm."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.arange(6.0).reshape(2, 3) / 10)
            self.head.bias.zero_()

    def forward(self, batch, generator):
        noise = torch.randn(batch.feat.shape, generator=generator)
        return self.head(self.norm(batch.feat + 0.1 * noise))


def _batch(*key, n=20):
    g = torch.Generator().manual_seed(hash(key) % 2**31)
    feat = torch.randn((n, 3), generator=g)
    return PointBatch(
        torch.zeros((n, 3), dtype=torch.int32), feat, feat, torch.tensor([n]), segment=(feat[:, 0] > 0).long()
    )


class Memory:
    """Batches that follow from epoch and step."""

    steps = STEPS

    def __init__(self, accumulation=1, spoiled=()):
        self.accumulation, self.spoiled, self.asked = accumulation, spoiled, []

    def epoch(self, epoch, start):
        self.asked.append((epoch, start))
        for step in range(start, STEPS):
            batches = [_batch(epoch, step, i) for i in range(self.accumulation)]
            if (epoch, step) in self.spoiled:
                batches[0].feat.fill_(math.inf)
            yield batches


class Scores:
    """An evaluation whose mIoU is read from a list; says when it was called."""

    def __init__(self, right):
        self.right, self.calls = list(right), 0

    def __call__(self, stopped):
        self.calls += 1
        right = self.right[self.calls - 1]
        return None if stopped.is_set() else ConfusionMatrix(2, torch.tensor([[right, 10 - right], [0, 10]])).scores()


class Notes(Nobody):
    def __init__(self, at=None, stop=None):
        self.events, self._at, self._stop = [], at, stop

    def step(self, report):
        self.events.append(report.step)
        if report.step == self._at:
            self._stop.set()

    def evaluation(self, report):
        self.events.append(("evaluation", report.step, report.epoch, report.best))

    def settle(self):
        self.events.append("saved")


def _make(folder, *settings, batches=None, evaluation=None, at=None):
    config = load_config(TrainConfig, [], ["run.epochs=3", "run.log_every=1", "optim.block_pattern=head", *settings])
    model, stop, world = Net(), threading.Event(), World(CPU)
    step = Step(
        model,
        SegmentationObjective(config.loss, 2),
        build_optimizer(model, config.optim),
        OneCycle.of(config.optim, STEPS * config.run.epochs),
        Precision(config.run.amp, CPU),
        config,
        world,
    )
    notes = Notes(at, stop)
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints")
    last = checkpoints.find("last")
    log = JsonLog(folder / "log.jsonl", last.state()["log_bytes"] if last else 0)
    loop = Loop(
        step,
        batches or Memory(config.run.accumulation),
        evaluation or Scores([5, 7, 6]),
        config,
        world,
        checkpoints,
        log,
        Trackers([log, notes]),
        stop,
    )
    if last:
        model.load_state_dict(last.weights())
        loop.restore(last.state())
    return SimpleNamespace(
        loop=loop, model=model, notes=notes, checkpoints=checkpoints, log=folder / "log.jsonl", close=log.close
    )


@pytest.fixture
def make(tmp_path):
    """Makes a loop in a folder below the test's own."""
    with ExitStack() as stack:

        def made(folder, *settings, **options):
            run = _make(tmp_path / folder, *settings, **options)
            stack.callback(run.close)
            return run

        yield made


def _losses(run):
    return [line["loss"] for line in map(json.loads, run.log.read_text().splitlines()) if line["kind"] == "step"]


def test_order_of_a_run(make):
    run = make("run")
    run.loop.run()
    assert run.notes.events == [
        *[1, 2, 3, 4, ("evaluation", 4, 0, True), "saved"],
        *[5, 6, 7, 8, ("evaluation", 8, 1, True), "saved"],
        *[9, 10, 11, 12, ("evaluation", 12, 2, False), "saved"],
    ]
    assert (run.checkpoints.find("last").step, run.checkpoints.find("best").step) == (12, 8)
    assert not run.loop.stopped


def test_evaluation_now_and_then_and_at_the_end(make):
    run = make("run", "run.eval_every=2", "run.checkpoint_every=3")
    run.loop.run()
    assert run.notes.events == [
        *[1, 2, 3, "saved", 4, "saved"],
        *[5, 6, "saved", 7, 8, ("evaluation", 8, 1, True), "saved"],
        *[9, "saved", 10, 11, 12, ("evaluation", 12, 2, True), "saved"],
    ]


@pytest.mark.parametrize("at", [1, 3, 4, 6, 12])
def test_stop_and_go_on(at, make):
    whole = make("whole", "run.log_every=3")
    whole.loop.run()
    first = make("parts", "run.log_every=3", at=at)
    first.loop.run()
    assert first.loop.stopped
    assert first.loop.state.step == at
    assert first.notes.events[-1] == "saved"
    evaluation = Scores([5, 7, 6][(at - 1) // STEPS :])
    second = make("parts", "run.log_every=3", evaluation=evaluation)
    second.loop.run()
    assert not second.loop.stopped
    assert _losses(second) == _losses(whole)
    assert second.loop.state == whole.loop.state
    assert all(torch.equal(a, b) for a, b in zip(second.model.parameters(), whole.model.parameters(), strict=True))


def test_a_finished_run_has_nothing_left_to_do(make):
    make("run").loop.run()
    again = make("run")
    again.loop.run()
    assert again.notes.events == []


def test_losses_between_readings_are_averaged(make):
    every, rarely = (make(str(n), f"run.log_every={n}") for n in (1, 5))
    every.loop.run()
    rarely.loop.run()
    losses = _losses(every)
    assert _losses(rarely) == pytest.approx([sum(losses[:5]) / 5, sum(losses[5:10]) / 5, sum(losses[10:]) / 2])


def test_accumulated_gradients_are_the_mean(make):
    """One update from two batches is one from their mean loss."""
    run = make("run", "run.accumulation=2", "run.batch_size=2", "loss.lovasz=0")
    run.model.eval()  # one set of statistics
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    batches = next(run.loop._batches.epoch(0, 0))
    step = run.loop._step
    step(batches, 0, 0)
    got = {name: p.grad.clone() for name, p in run.model.named_parameters()}
    run.model.load_state_dict({**run.model.state_dict(), **before})
    run.model.zero_grad()
    for i, batch in enumerate(batches):
        logits = run.model(batch, torch_generator_for(0, "model", 0, i))
        (nn.functional.cross_entropy(logits, batch.segment) / 2).backward()
    for name, parameter in run.model.named_parameters():
        assert torch.allclose(got[name], parameter.grad, atol=1e-7), name


def test_overflow_skips_the_update_and_the_schedule_waits(make):
    run = make("run", "run.amp=fp16", "loss.lovasz=0", batches=Memory(spoiled=[(0, 1)]))
    before = []
    step = run.loop._step

    def watched(batches, number, updates):
        weights = run.model.head.weight.clone()
        result = step(batches, number, updates)
        before.append((result.applied, torch.equal(weights, run.model.head.weight), result.lr))
        return result

    for i in range(3):
        batches = list(run.loop._batches.epoch(0, 0))[i]
        watched(batches, i, sum(applied for applied, _, _ in before))
    assert [applied for applied, _, _ in before] == [True, False, True]
    assert [same for _, same, _ in before] == [False, True, False]
    assert before[1][2] == before[2][2] != before[0][2]
    assert step.precision.scaler.get_scale() == 2**15


def test_a_loss_that_is_not_finite_is_an_error(make):
    run = make("run", "run.log_every=2", batches=Memory(spoiled=[(1, 0)]))
    with pytest.raises(TrainingError, match="at step 6"):
        run.loop.run()
    assert run.checkpoints.find("last").step == 4


def test_weights_after_such_a_loss_are_never_saved(make):
    run = make("run", "run.log_every=100", "run.checkpoint_every=3", batches=Memory(spoiled=[(1, 0)]))
    with pytest.raises(TrainingError, match="at step 6"):
        run.loop.run()
    assert run.checkpoints.find("last").step == 4


def test_state_of_another_network_is_refused(make):
    run = make("run")
    run.loop.run()
    state = run.checkpoints.find("last").state()
    state["optimizer"]["param_groups"].pop()
    with pytest.raises(CheckpointError, match="does not fit"):
        make("other").loop.restore(state)


def _labelled(segment):
    n = len(segment)
    return PointBatch(torch.zeros(n, 3), torch.zeros(n, 3), torch.zeros(n, 3), torch.tensor([n]), segment=segment)


def test_objective():
    batch, world = _batch(99), World(CPU)
    logits, labels = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), batch.segment.clone()
    labels[:5] = -1
    labelled = _labelled(labels)
    ce = nn.functional.cross_entropy(logits, labels, ignore_index=-1)
    only_ce = SegmentationObjective(LossConfig(lovasz=0), 2)
    assert only_ce(logits, labelled) == pytest.approx(float(ce), rel=1e-6)
    both = SegmentationObjective(LossConfig(cross_entropy=2), 2)(logits, labelled)
    lovasz = SegmentationObjective(LossConfig(cross_entropy=0), 2)(logits, labelled)
    assert float(both) == pytest.approx(2 * float(ce) + float(lovasz), rel=1e-6)
    weighted = SegmentationObjective(LossConfig(lovasz=0, class_weights=(1, 3)), 2)
    expected = nn.functional.cross_entropy(logits, labels, torch.tensor([1.0, 3.0]), ignore_index=-1)
    assert float(weighted(logits, labelled)) == pytest.approx(float(expected), rel=1e-6)
    assert only_ce.denominator([batch], world) is None
    assert float(only_ce(logits, _labelled(torch.full_like(labels, -1)))) == 0
    with pytest.raises(ConfigError, match="3 weights for 2 classes"):
        SegmentationObjective(LossConfig(class_weights=(1, 1, 1)), 2)


@pytest.mark.parametrize("weights", [None, (1.0, 3.0)])
def test_global_normalisation_is_one_big_batch(weights):
    objective = SegmentationObjective(LossConfig(lovasz=0, global_normalisation=True, class_weights=weights), 2)
    parts = [_batch(1, n=10), _batch(2, n=70)]
    denominator = objective.denominator(parts, World(CPU))
    g = torch.Generator().manual_seed(0)
    logits = [torch.randn((len(p.segment), 2), generator=g) for p in parts]
    mean = sum(objective(x, p, denominator) for x, p in zip(logits, parts, strict=True)) / 2
    one = SegmentationObjective(LossConfig(lovasz=0, class_weights=weights), 2)
    whole = one(torch.cat(logits), _labelled(torch.cat([p.segment for p in parts])))
    assert float(mean) == pytest.approx(float(whole), rel=1e-6)


def test_cosine_objective_counts_visible_points():
    cosine = torch.tensor([0.5, NOT_VISIBLE, 1.0, -1.0], requires_grad=True)
    batch, objective = _batch(1, n=4), CosineObjective()
    loss = objective(cosine, batch)
    assert loss.item() == pytest.approx((0.5 + 0 + 2) / 3)
    loss.backward()
    assert cosine.grad.tolist() == pytest.approx([-1 / 3, 0, -1 / 3, -1 / 3])
    nobody = torch.full((4,), NOT_VISIBLE, requires_grad=True)
    objective(nobody, batch).backward()
    assert nobody.grad.tolist() == [0, 0, 0, 0]
    # a network that has diverged is not taken for one that sees nothing
    assert objective(torch.tensor([0.5, torch.nan]), batch).isnan()


def test_cosine_objective_over_a_whole_step():
    objective, parts = CosineObjective(global_normalisation=True), []
    for visible in (1, 3):
        index = torch.tensor([0] * visible + [-1] * (4 - visible))
        image = FactoredFeatures(torch.ones(1, 2), index)
        cosine = torch.where(index >= 0, 0.25 * visible, NOT_VISIBLE)
        parts.append((cosine, PointBatch(*[torch.zeros(4, 3)] * 3, torch.tensor([4]), image)))
    denominator = objective.denominator([batch for _, batch in parts], World(CPU))
    mean = sum(float(objective(cosine, batch, denominator)) for cosine, batch in parts) / 2
    assert mean == pytest.approx((0.75 + 3 * 0.25) / 4)
    assert CosineObjective().denominator([batch for _, batch in parts], World(CPU)) is None


@pytest.mark.parametrize("settings", [["loss.cross_entropy=0", "loss.lovasz=0"], ["run.accumulation=5"]])
def test_impossible_settings(settings):
    with pytest.raises(ConfigError):
        load_config(TrainConfig, [], settings)
