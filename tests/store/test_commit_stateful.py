# SPDX-License-Identifier: Apache-2.0
"""The commit protocol under crashes between every two steps: nothing lost, nothing twice, never half a store."""

import random
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from crash_world import Actor, Mortal, World, receipt_names
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_builder import NoSync, build_store, fast_folder, random_block, run_extraction, write_block

from ditr_cache.errors import StoreError, StoreNotFoundError
from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.reader import open_store
from ditr_cache.store.verify import verify_store
from ditr_cache.store.writer import StoreWriter

SETTINGS = BlockSettings(8, "float16", points=False)
BLOCKS = [random_block(i, f"block {i}", points=9, views=1) for i in range(3)]


def extract(path: Path, fs: Filesystem, blocks=BLOCKS) -> None:
    """What an extraction does to a store; every run plans all three blocks."""
    run_extraction(path, fs, blocks, SETTINGS, planned=BLOCKS)


def digest_of_undisturbed() -> str:
    with fast_folder() as folder:
        extract(folder / "s", NoSync())
        return open_store(folder / "s").digest


def check_readers_see_whole_blocks(path: Path) -> None:
    """Either there is no store yet, or every sample that it lists reads to what was written."""
    try:
        store = open_store(path)
    except StoreNotFoundError:
        return
    with store:
        for sample_id in store.samples:
            sample = BLOCKS[int(sample_id[6])].samples[0]
            got = store.read(sample_id, rule="last")
            np.testing.assert_array_equal(got.features.rows, sample.views[0].rows.astype(np.float16))


def check_finished(path: Path, digest: str) -> None:
    """After one clean run all is there, once, and nothing else."""
    extract(path, NoSync())
    store = open_store(path)
    assert store.digest == digest
    assert list(store.manifest.blocks) == [b.id for b in BLOCKS]
    assert store.manifest.planned == ()
    assert {p.name for p in (path / "blocks").iterdir()} == {
        r.folder.removeprefix("blocks/") for r in store.manifest.blocks.values()
    }
    assert not list(path.rglob(".*.tmp"))
    report = verify_store(path)
    assert (report.problems, report.notes) == ((), ())


class CommitProtocol(RuleBasedStateMachine):
    """Several extractions and finalisers on one store, stopped and killed wherever hypothesis likes."""

    @initialize()
    def begin(self) -> None:
        self.folder = ExitStack()
        self.path = self.folder.enter_context(fast_folder()) / "s"
        self.world, self.actors = World(), []

    @precondition(lambda self: len(self.actors) < 4)
    @rule(order=st.permutations(range(3)))
    def start_extraction(self, order: list[int]) -> None:
        blocks = [BLOCKS[i] for i in order]
        self.actors.append(Actor(self.world, lambda fs: extract(self.path, fs, blocks)))

    @precondition(lambda self: len(self.actors) < 4 and (self.path / "zarr.json").exists())
    @rule()
    def start_finaliser(self) -> None:
        self.actors.append(Actor(self.world, lambda fs: StoreWriter(self.path, fs).finalize()))

    @precondition(lambda self: self.actors)
    @rule(which=st.integers(0, 3), steps=st.integers(1, 60))
    def some_steps(self, which: int, steps: int) -> None:
        actor = self.actors[which % len(self.actors)]
        for _ in range(steps):
            actor.advance()
        self.bury(actor)

    @precondition(lambda self: self.actors)
    @rule(which=st.integers(0, 3), until=st.sampled_from(["link receipts", "rename LATEST", "remove_tree", "lock"]))
    def up_to(self, which: int, until: str) -> None:
        actor = self.actors[which % len(self.actors)]
        actor.advance_until(lambda name: name == until)
        self.bury(actor)

    @precondition(lambda self: self.actors)
    @rule(which=st.integers(0, 3))
    def to_its_end(self, which: int) -> None:
        actor = self.actors[which % len(self.actors)]
        actor.advance_until(lambda name: False)
        self.bury(actor)

    @precondition(lambda self: self.actors)
    @rule(which=st.integers(0, 3))
    def kill(self, which: int) -> None:
        self.actors.pop(which % len(self.actors)).kill()

    @precondition(lambda self: self.actors)
    @rule(seed=st.integers(0, 2**32 - 1))
    def cut_power(self, seed: int) -> None:
        self.kill_all()
        self.world.cut_power(random.Random(seed))

    @invariant()
    def no_half_store(self) -> None:
        check_readers_see_whole_blocks(self.path)

    def bury(self, actor: Actor) -> None:
        if actor.alive:
            return
        self.actors.remove(actor)
        covered = {f"{name.replace(' ', '%20')}.0.json" for name in open_store(self.path).manifest.blocks}
        assert actor.fs.receipts_at_swap <= covered

    def kill_all(self) -> None:
        for actor in self.actors:
            actor.kill()
        self.actors = []

    def teardown(self) -> None:
        self.kill_all()
        check_finished(self.path, DIGEST)
        self.folder.close()


DIGEST = digest_of_undisturbed()
TestCommitProtocol = CommitProtocol.TestCase
TestCommitProtocol.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


class ManyRuns(CommitProtocol):
    """The same at length."""


TestManyRuns = pytest.mark.slow(ManyRuns.TestCase)
TestManyRuns.settings = settings(TestCommitProtocol.settings, max_examples=300, stateful_step_count=50)


def only_commit(path: Path, fs: Filesystem, block) -> None:
    """A writer that never gets as far as finalising."""
    writer = StoreWriter(path, fs)
    writer.commit(write_block(writer, block, SETTINGS))


def covered(path: Path) -> list[str]:
    return list(open_store(path).manifest.blocks)


@pytest.fixture
def started(tmp_path) -> Path:
    """A store that has one of three blocks."""
    build_store(tmp_path / "s", BLOCKS[:1], SETTINGS)
    return tmp_path / "s"


def test_a_block_that_is_committed_while_a_finaliser_works_is_in_its_manifest(started):
    finaliser = Actor(World(), lambda fs: StoreWriter(started, fs).finalize())
    finaliser.advance_until(lambda name: name == "rename LATEST")
    only_commit(started, NoSync(), BLOCKS[1])
    finaliser.advance_until(lambda name: False)
    assert covered(started) == ["block 0", "block 1"]


def test_a_slow_finaliser_cannot_take_back_what_a_fast_one_published(started):
    world = World()
    slow, fast = (Actor(world, lambda fs: StoreWriter(started, fs).finalize()) for _ in range(2))
    slow.advance_until(lambda name: name == "rename LATEST")
    only_commit(started, NoSync(), BLOCKS[1])
    fast.advance_until(lambda name: False)
    # it has to wait: its sweep would take the temporary file of the other one too
    assert fast.blocked
    slow.advance()
    slow.kill()
    fast.advance_until(lambda name: False)
    assert not fast.alive
    assert covered(started) == ["block 0", "block 1"]


def test_a_finaliser_leaves_blocks_alone_that_are_being_written(started):
    writer = Actor(World(), lambda fs: only_commit(started, fs, BLOCKS[1]))
    for _ in range(40):
        writer.advance()
        StoreWriter(started, NoSync()).finalize()
    writer.advance_until(lambda name: name == "link receipts")
    StoreWriter(started, NoSync()).finalize()
    writer.advance_until(lambda name: False)
    StoreWriter(started, NoSync()).finalize()
    assert covered(started) == ["block 0", "block 1"]
    assert verify_store(started).notes == ()


def redo(path: Path, fs: Filesystem) -> bool:
    """Do the first block again."""
    writer = StoreWriter(path, fs)
    return writer.commit(write_block(writer, BLOCKS[0], SETTINGS, generation=1))


@pytest.mark.parametrize("until", ["lock", "link receipts"])
def test_a_block_that_is_done_again_is_lost_whole_or_not_at_all(started, until):
    """A collector cannot tell it from what a beaten writer left: it may take the files, but not after the receipt."""
    world = World()
    again = Actor(world, lambda fs: redo(started, fs))
    again.advance_until(lambda name: name == until)
    finaliser = Actor(world, lambda fs: StoreWriter(started, fs).finalize())
    finaliser.advance_until(lambda name: False)
    assert finaliser.blocked == (until == "link receipts")
    if until == "lock":
        with pytest.raises(StoreError, match="collected while it was written"):
            again.advance_until(lambda name: False)
    else:
        again.advance_until(lambda name: False)
        finaliser.advance_until(lambda name: False)
    StoreWriter(started, NoSync()).finalize()
    report = verify_store(started)
    assert (report.problems, report.notes) == ((), ())
    assert open_store(started).manifest.blocks["block 0"].generation == (until == "link receipts")


def test_a_writer_whose_files_were_collected_cannot_commit(started):
    writer = StoreWriter(started, NoSync())
    receipt = write_block(writer, BLOCKS[1], SETTINGS)
    # in another process, and against the advice not to while blocks are written
    StoreWriter(started, NoSync()).collect(now=True)
    with pytest.raises(StoreError, match="collected while it was written"):
        writer.commit(receipt)
    assert not writer.has_receipt("block 1")


class LoseAll(random.Random):
    def random(self) -> float:
        return 0.0


def test_what_a_manifest_lists_survives_a_power_cut(started):
    """A receipt can be seen before its writer has flushed it."""
    world = World()
    writer = Actor(world, lambda fs: only_commit(started, fs, BLOCKS[1]))
    writer.advance_until(lambda name: name == "link receipts")
    writer.advance()
    Mortal(world).run(lambda fs: StoreWriter(started, fs).finalize())
    writer.kill()
    world.cut_power(LoseAll())
    assert covered(started) == ["block 0", "block 1"]
    assert verify_store(started).problems == ()


@pytest.mark.parametrize("steps", [1, 30, 100, 200])
def test_a_writer_that_was_beaten_goes_on_with_the_next_block(started, steps):
    beaten = Actor(World(), lambda fs: extract(started, fs))
    beaten.advance_until(lambda name: name == "open_new")
    for _ in range(steps):
        beaten.advance()
    only_commit(started, NoSync(), BLOCKS[1])
    StoreWriter(started, NoSync()).finalize()
    beaten.advance_until(lambda name: False)
    assert covered(started) == [b.id for b in BLOCKS]
    assert verify_store(started).notes == ()


def crash_and_resume(folder: Path, life: int, power_cut: bool, digest: str) -> None:
    """Kill an extraction of one block after so many steps, then run it again."""
    one, path, world = BLOCKS[:1], folder / "s", World()
    Mortal(world, life).run(lambda fs: extract(path, fs, one))
    if power_cut:
        world.cut_power(random.Random(life))
    committed = receipt_names(path)
    check_readers_see_whole_blocks(path)
    extract(path, NoSync(), one)
    assert committed <= receipt_names(path)
    with open_store(path) as store:
        assert store.digest == digest
        check_readers_see_whole_blocks(path)
    assert len(list((path / "blocks").iterdir())) == 1
    assert not list(path.rglob(".*.tmp"))
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def whole_life(module_path) -> tuple[list[str], str]:
    """Every step of an undisturbed run, and its digest."""
    path, process = module_path / "s", Mortal(World())
    process.run(lambda fs: extract(path, fs, BLOCKS[:1]))
    return process.names, open_store(path).digest


def test_a_crash_before_every_step(tmp_path, whole_life):
    names, digest = whole_life
    for life in range(len(names) + 1):
        crash_and_resume(tmp_path, life, power_cut=life % 2 == 0, digest=digest)


@pytest.mark.slow
@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power cut"])
def test_both_crashes_before_every_step(tmp_path, whole_life, power_cut):
    names, digest = whole_life
    for life in range(len(names) + 1):
        crash_and_resume(tmp_path, life, power_cut, digest)


def test_build_store_and_extract_agree(tmp_path):
    build_store(tmp_path / "s", BLOCKS, SETTINGS)
    assert open_store(tmp_path / "s").digest == DIGEST
    writer = StoreWriter(tmp_path / "s", NoSync())
    assert not writer.commit(write_block(writer, BLOCKS[0], SETTINGS))
