"""Writes a plan: the one way in which an exporter's output reaches the disk.

Temporary files are allocated in full, worker threads fill them job by job at computed offsets, then they are synced,
read back against the source, and renamed. Nothing stands under a final name before that. Memory is a few cache-sized
buffers per thread.
"""

from __future__ import annotations

import ctypes
import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gptoss_adapters.checkpoint.writing.hashing import Followers
from gptoss_adapters.checkpoint.writing.journal import Parts, io_error, part_paths, published
from gptoss_adapters.checkpoint.writing.plan import Job, Plan, Seal
from gptoss_adapters.errors import CheckFailed, GptOssError, OutputError

COMMIT_SECONDS = 5.0  # how much work, in time, an interrupted run loses at most
MAX_THREADS = (
    4  # unless asked for: a disk takes no more, and a fill that needs whole experts holds one of them per thread
)
Progress = Callable[[str, int, int], None]  # (phase, bytes done, bytes in all), called a few times a second


@dataclass
class Written:
    """What was done: bytes, how many of them an earlier run had written, wall and CPU seconds per phase, sha256 by
    file name.
    """

    nbytes: int
    resumed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)


def write(
    plan: Plan,
    *,
    threads: int | None = None,
    resume: bool = False,
    force: bool = False,
    sync: bool = True,
    read_back: bool = True,
    commit_seconds: float = COMMIT_SECONDS,
    progress: Progress | None = None,
) -> Written:
    """Carries out `plan` and returns what was done. `sync` and `read_back` are turned off by benchmarks only.

    Raises OutputError (exists, no space, another writer, I/O), BadInput (a source is damaged or changed), CheckFailed
    (what was read back differs). Any of these leaves nothing behind; KeyboardInterrupt leaves what `resume` continues
    from.
    """
    check_target(plan, force, published(plan) if resume else set())
    parts = Parts(plan, resume)
    run = _Run(plan, parts, threads or min(os.cpu_count() or 1, MAX_THREADS), commit_seconds, sync, progress)
    try:
        return run.carry_out(force, read_back)
    except OSError as e:
        parts.discard()
        raise io_error(e, plan.files[0].path, plan.nbytes) from None
    except GptOssError:
        parts.discard()
        raise
    except KeyboardInterrupt:
        parts.close()
        raise KeyboardInterrupt(
            f"{plan.files[0].path}: interrupted: what is done stays in {parts.paths[0].name}: run again with --resume"
        ) from None
    except BaseException:
        parts.close()
        raise


def check_target(plan: Plan, force: bool, ours: Collection[int] = ()) -> None:
    """Raises OutputError when an output exists (without `force`) or must not be replaced, its folder is missing, or the
    space is not there.

    `ours`: the numbers of the files that an interrupted run had given their names.
    """
    for n, file in enumerate(plan.files):
        if file.path.is_dir():
            raise OutputError("is a folder", file=file.path, hint="name a file")
        if os.path.lexists(file.path) and n not in ours:
            _check_replaceable(plan, file.path, force)
    folder = plan.files[0].path.parent
    if not folder.is_dir():
        raise OutputError("no such folder", file=folder)
    needed = plan.nbytes - sum(
        _allocated(plan.files[n].path if n in ours else part) for n, part in enumerate(part_paths(plan))
    )
    space = os.statvfs(folder)
    if space.f_bavail * space.f_frsize < needed:
        raise OutputError(
            "not enough space", file=folder, expected=f"{needed} bytes free", got=space.f_bavail * space.f_frsize
        )


def _check_replaceable(plan: Plan, path: Path, force: bool) -> None:
    """`--force` is for an earlier output: a device is none, and of an input the only copy may be lost."""
    there = path.lstat()
    if not (stat.S_ISREG(there.st_mode) or stat.S_ISLNK(there.st_mode)):
        raise OutputError("is not a regular file", file=path, hint="name another file")
    if not force:
        raise OutputError("exists already", file=path, hint="add --force to replace it")
    if any(os.path.samestat(there, source.stat()) for source in plan.sources if source.exists()):
        raise OutputError("is one of the inputs", file=path, hint="write elsewhere")


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


class _Run:
    """The state of one `write`: a queue of jobs that threads draw from, and what they have done so far."""

    def __init__(
        self, plan: Plan, parts: Parts, threads: int, commit_seconds: float, sync: bool, progress: Progress | None
    ) -> None:
        self.plan, self.parts, self.threads, self.commit_seconds, self.sync, self.progress = (
            plan,
            parts,
            threads,
            commit_seconds,
            sync,
            progress,
        )
        self.changed = threading.Condition()
        self.bytes_done, self.error = 0, None
        self.fresh: set[int] = set()  # done since the last commit
        self.done = set(parts.done)
        self.written = Written(plan.nbytes, sum(plan.job_bytes(plan.jobs[n]) for n in parts.done))
        self.big = plan.nbytes > _memory() // 2

    error: BaseException | None

    def carry_out(self, force: bool, read_back: bool) -> Written:
        with self._phase("write"):
            self._allocate()
            followers = Followers(self.plan, self.parts.fds, self._wait)
            self._each_job("write", self._write, [n for n in range(len(self.plan.jobs)) if n not in self.done])
            self._seal(followers.finish())
        with self._phase("sync"):
            if self.sync:
                for fd in self.parts.fds:
                    os.fsync(fd)
        if read_back:
            with self._phase("read back"):
                self._each_job("read back", self._check, list(range(len(self.plan.jobs))))
        self.plan.check_sources()
        self.parts.publish(force)
        return self.written

    def _wait(self, number: int) -> bool:
        with self.changed:
            self.changed.wait_for(lambda: number in self.done or self.error is not None)
            return self.error is None

    def _seal(self, digests: Mapping[Seal, str]) -> None:
        for seal, digest in digests.items():
            os.pwrite(self.parts.fds[0], digest.encode(), seal.offset)
            path = list(self.plan.sources)[seal.index] if seal.of == "source" else self.plan.files[seal.index].path
            self.written.sha256[path.name if seal.of == "source" else f"{path.name} (tensor data)"] = digest

    def _phase(self, name: str) -> _Phase:
        return _Phase(self.written, name)

    def _allocate(self) -> None:
        for fd, file in zip(self.parts.fds, self.plan.files, strict=True):
            if not self.done:
                os.posix_fallocate(fd, 0, file.size)
                os.pwrite(fd, file.header, 0)

    def _each_job(self, phase: str, do: Callable[[Job], None], numbers: list[int]) -> None:
        """Runs `do` on every job, on all threads; this thread reports and commits meanwhile."""
        total = sum(self.plan.job_bytes(j) for j in self.plan.jobs)
        self.bytes_done = total - sum(self.plan.job_bytes(self.plan.jobs[n]) for n in numbers)
        queue = iter(numbers)
        workers = [threading.Thread(target=self._work, args=(queue, do), daemon=True) for _ in range(self.threads)]
        for worker in workers:
            worker.start()
        try:
            self._attend(workers, phase, total)
            if self.error:
                raise self.error
        except BaseException as e:
            self._fail(e)
            for worker in workers:
                worker.join()
            if phase == "write" and not isinstance(e, Exception):  # interrupted: keep what is done
                self._commit()
            raise

    def _attend(self, workers: list[threading.Thread], phase: str, total: int) -> None:
        last = time.monotonic()
        while workers:
            workers[0].join(0.1)
            workers = [w for w in workers if w.is_alive()]
            if self.progress:
                self.progress(phase, self.bytes_done, total)
            if phase == "write" and time.monotonic() - last > self.commit_seconds:
                self._commit()
                last = time.monotonic()
        if self.progress:
            self.progress(phase, self.bytes_done, total)

    def _work(self, queue: Iterator[int], do: Callable[[Job], None]) -> None:
        while True:
            with self.changed:
                number = next(queue, None)
            if number is None or self.error:
                break
            try:
                do(self.plan.jobs[number])
            except BaseException as e:
                self._fail(e)
                break
            with self.changed:
                self.done.add(number)
                self.fresh.add(number)
                self.changed.notify_all()
                self.bytes_done += self.plan.job_bytes(self.plan.jobs[number])

    def _fail(self, e: BaseException) -> None:
        with self.changed:
            self.error = self.error or e
            self.changed.notify_all()

    def _write(self, job: Job) -> None:
        fill, targets = self.plan.works[job.work].fill, self._targets(job)
        fill.write(job.begin, job.end, targets)
        if self.sync:
            for (fd, offset), width in zip(targets, fill.widths, strict=True):
                _start_writeback(fd, offset + job.begin * width, (job.end - job.begin) * width)

    def _check(self, job: Job) -> None:
        work = self.plan.works[job.work]
        found = work.fill.differs(job.begin, job.end, self._targets(job))
        if found:
            place, at = work.places[found[0]], found[1]
            file = self.plan.files[place.file]
            raise CheckFailed(
                f"byte {at} read back differs from the source",
                file=file.path,
                tensor=file.tensors[place.tensor].name,
                hint="the disk or the memory is at fault; nothing was kept",
            )

    def _targets(self, job: Job) -> list[tuple[int, int]]:
        return [
            (self.parts.fds[p.file], self.plan.files[p.file].offsets[p.tensor])
            for p in self.plan.works[job.work].places
        ]

    def _commit(self) -> None:
        with self.changed:
            fresh, self.fresh = self.fresh, set()
        if not fresh:
            return
        self.parts.commit(fresh)
        if self.big:  # leave the page cache to others
            for fd in self.parts.fds:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


class _Phase:
    """Adds the wall and CPU seconds that pass inside to `written`."""

    def __init__(self, written: Written, name: str) -> None:
        self.written, self.name = written, name

    def __enter__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.written.seconds[self.name] = time.perf_counter() - self.wall
        self.written.cpu_seconds[self.name] = time.process_time() - self.cpu


_SYNC_FILE_RANGE_WRITE = 2


def _start_writeback(fd: int, offset: int, nbytes: int) -> None:
    """Lets the disk begin while we go on; a hint, whose failure does not matter."""
    try:
        hint = ctypes.CDLL(None).sync_file_range
    except AttributeError:  # not Linux
        return
    hint(fd, ctypes.c_int64(offset), ctypes.c_int64(nbytes), _SYNC_FILE_RANGE_WRITE)


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
