# SPDX-License-Identifier: Apache-2.0
"""A machine on which processes are stopped, killed, and lose their power between any two steps on the file system.

An `Actor` is a thread that stands in for a process: it waits before every step until it is told to go on, or to die.
The file system under it tears writes in two, removes trees file by file, and remembers what has not been flushed.
"""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from ditr_cache.store.filesystem import Filesystem


class Crash(BaseException):
    """The process is gone. No handler of the library may catch this."""


class World:
    """What actors share: the lock of the store, and what a power cut would undo."""

    def __init__(self) -> None:
        self.lock_owner: Actor | Mortal | None = None
        self._content: dict[Path, Callable[[random.Random], None]] = {}
        self._entries: dict[Path, dict[Path, Callable[[], None]]] = {}
        """By folder."""

    def written(self, path: Path) -> None:
        """A file has bytes that are not flushed."""
        self._content[path] = lambda rng: _tear(path, rng)

    def flushed(self, path: Path) -> None:
        """Its bytes are on the medium."""
        self._content.pop(path, None)

    def entered(self, path: Path, undo: Callable[[], None]) -> None:
        """A folder has an entry that is not flushed."""
        # what a first change would be undone to is what a second one would be undone to
        self._entries.setdefault(path.parent, {}).setdefault(path, undo)

    def folder_flushed(self, folder: Path) -> None:
        """The entries of a folder are on the medium."""
        self._entries.pop(folder, None)

    def cut_power(self, rng: random.Random) -> None:
        """Lose any part of what was not flushed."""
        for tear in self._content.values():
            if rng.random() < 0.7:
                tear(rng)
        for entries in reversed(self._entries.values()):
            for undo in reversed(entries.values()):
                if rng.random() < 0.7:
                    undo()
        self._content, self._entries, self.lock_owner = {}, {}, None


def _tear(path: Path, rng: random.Random) -> None:
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(rng.randint(0, path.stat().st_size))


class Actor(threading.Thread):
    """A process: runs `body(fs)` step by step.

    Args:
        world: Where it lives.
        body: What it does with the file system it is given.
    """

    def __init__(self, world: World, body: Callable[[SteppedFilesystem], Any]) -> None:
        super().__init__(daemon=True)
        self.world, self.steps, self.next_step = world, 0, ""
        self.alive, self.result, self.error = True, None, None
        self.fs = SteppedFilesystem(self)
        self._body, self._dying = body, False
        # plain locks, held until they are passed on: three times as fast as semaphores
        self._go, self._stopped = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._stopped.acquire()
        self.start()
        self._stopped.acquire()

    def run(self) -> None:
        try:
            self.step("start")
            self.result = self._body(self.fs)
        except Crash:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.alive = False
            self._stopped.release()

    def step(self, name: str) -> None:
        """Called by its file system before anything changes."""
        if self._dying:
            raise Crash
        self.next_step = name
        self._stopped.release()
        self._go.acquire()
        if self._dying:
            raise Crash
        self.steps += 1

    @property
    def blocked(self) -> bool:
        """Whether it waits for a lock that another actor holds."""
        return self.next_step == "lock" and self.world.lock_owner is not None

    def advance(self) -> None:
        """Let it do one step."""
        if self.alive and not self.blocked:
            self._go.release()
            self._stopped.acquire()
            if self.error is not None:
                raise self.error

    def advance_until(self, stop: Callable[[str], bool]) -> None:
        """Let it go on to just before a step that `stop` recognises by its name, at least one."""
        self.advance()
        while self.alive and not self.blocked and not stop(self.next_step):
            self.advance()

    def kill(self) -> None:
        """SIGKILL."""
        if self.alive:
            self._dying = True
            self._go.release()
            self._stopped.acquire()
            self.join()
            for file in self.fs.files:
                file.close()
            if self.world.lock_owner is self:
                self.world.lock_owner = None
            if self.error is not None:
                raise self.error


class Mortal:
    """A process that dies at a certain step; no thread, for one that nobody works beside.

    Args:
        world: Where it lives.
        life: Steps it does.
    """

    def __init__(self, world: World, life: float = float("inf")) -> None:
        self.world, self.names = world, []
        self.fs = SteppedFilesystem(self)
        self._life = life

    def step(self, name: str) -> None:
        """Called by its file system before anything changes."""
        if len(self.names) >= self._life:
            raise Crash
        self.names.append(name)

    def run(self, body: Callable[[SteppedFilesystem], Any]) -> None:
        """Live."""
        try:
            body(self.fs)
        except Crash:
            for file in self.fs.files:
                file.close()
            self.world.lock_owner = None


class SteppedFilesystem(Filesystem):
    """Stops before every step, and does the larger ones in pieces."""

    def __init__(self, actor: Actor | Mortal) -> None:
        self._actor, self._world = actor, actor.world
        self.receipts_at_swap: set[str] = set()
        """Receipts there were when LATEST was last replaced."""
        self.files: list[FileIO] = []

    def make_folder(self, path: Path) -> None:
        for folder in (*reversed(path.parents), path):
            if not folder.exists():
                self._actor.step("make_folder")
                folder.mkdir(exist_ok=True)
                self._world.entered(folder, lambda f=folder: shutil.rmtree(f, ignore_errors=True))

    def write(self, path: Path, data: bytes) -> None:
        self._actor.step("write")
        with path.open("xb") as file:
            file.write(data[: len(data) // 2])
            self._entered_file(path)
            self._world.written(path)
            file.flush()
            self._actor.step("write on")
            file.write(data[len(data) // 2 :])
        self._world.flushed(path)

    def open_new(self, path: Path) -> FileIO:
        self._actor.step("open_new")
        file = TornFile(path, self._actor)
        self.files.append(file)
        self._entered_file(path)
        return file

    def sync_file(self, file: FileIO) -> None:
        self._actor.step("sync_file")
        self._world.flushed(Path(str(file.name)))

    def sync_folder(self, path: Path) -> None:
        self._actor.step("sync_folder")
        if not path.is_dir():
            raise FileNotFoundError(path)
        self._world.folder_flushed(path)

    def link(self, source: Path, target: Path) -> None:
        self._actor.step(f"link {target.parent.name}")
        super().link(source, target)
        self._entered_file(target)

    def rename(self, source: Path, target: Path) -> None:
        self._actor.step(f"rename {target.name}")
        before = target.read_bytes() if target.exists() else None
        super().rename(source, target)
        if target.name == "LATEST":
            self.receipts_at_swap = receipt_names(target.parent)
        undo = target.unlink if before is None else lambda: target.write_bytes(before)
        self._world.entered(target, undo)

    def remove(self, path: Path) -> None:
        self._actor.step("remove")
        super().remove(path)

    def remove_tree(self, path: Path) -> None:
        # deepest first
        for child in sorted(path.rglob("*"), key=lambda p: -len(p.parts)):
            self._actor.step("remove_tree")
            try:
                child.rmdir() if child.is_dir() else child.unlink(missing_ok=True)
            except OSError:
                # gone, or filled again by its writer
                continue
        self._actor.step("remove_tree")
        super().remove_tree(path)

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        self._actor.step("lock")
        assert self._world.lock_owner is None
        self._world.lock_owner = self._actor
        path.touch()
        try:
            yield
        finally:
            if self._world.lock_owner is self._actor:
                self._world.lock_owner = None

    def _entered_file(self, path: Path) -> None:
        self._world.entered(path, lambda: path.unlink(missing_ok=True))


class TornFile(FileIO):
    """Every other write does half of what it was asked to."""

    def __init__(self, path: Path, actor: Actor | Mortal) -> None:
        super().__init__(path, "xb")
        self._actor, self._half = actor, False

    def write(self, data: Any) -> int:
        self._actor.step("write chunk")
        self._half = not self._half
        self._actor.world.written(Path(str(self.name)))
        data = memoryview(data)
        return super().write(data[: len(data) // 2] if self._half and len(data) > 1 else data)


def receipt_names(store: Path) -> set[str]:
    """File names of the receipts there are."""
    return {p.name for p in (store / "receipts").glob("[!.]*.json")}
