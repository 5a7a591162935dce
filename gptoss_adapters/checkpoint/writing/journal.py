"""The unfinished output: temporary files beside the final names, locked against a second writer, and a journal to
resume from.

.NAME.part-KEY          the output as far as it is (KEY: the plan's, so other inputs or options give another name)
.NAME.part-KEY.journal  one JSON line per commit: the jobs whose bytes are on the disk; then one: which files get their
names
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gptoss_adapters.checkpoint.files import Stamp, stamp_of
from gptoss_adapters.checkpoint.writing.plan import Plan
from gptoss_adapters.errors import BadInput, OutputError


class Parts:
    """The temporary files of a plan, open and locked; `done` holds the jobs that an earlier run completed.

    Raises OutputError when another run is writing or a file cannot be made, BadInput when `resume` finds another plan's
    files.
    """

    def __init__(self, plan: Plan, resume: bool) -> None:
        self.plan, self.paths, self.journal_path = plan, part_paths(plan), _journal_path(plan)
        self.fds: list[int] = []
        self._journal: int | None = None
        self._clear_strangers(resume)
        ours = published(plan) if resume else set()
        kept = resume and all(n in ours or p.exists() for n, p in enumerate(self.paths))
        try:
            for n, (path, file) in enumerate(zip(self.paths, plan.files, strict=True)):
                self.fds.append(_open_locked(file.path if kept and n in ours else path, kept))
            self.done = _read_journal(plan)[0] if kept else set()
            flags = (
                os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if self.done else os.O_TRUNC)
            )
            self._journal = os.open(self.journal_path, flags, 0o644)
            if not self.done:
                for fd in self.fds:
                    os.ftruncate(fd, 0)
                self._append(_heading(plan))
        except OSError as e:
            self.close()
            raise io_error(e, plan.files[0].path) from None
        except OutputError:
            self.close()
            raise

    def commit(self, jobs: Iterable[int]) -> None:
        """Makes the bytes of these jobs durable, then says so in the journal. Raises OSError."""
        for fd in self.fds:
            os.fdatasync(fd)
        self._append(sorted(jobs))

    def publish(self, force: bool) -> None:
        """Gives the complete files their names, the first one last, and makes that durable. Raises OSError,
        OutputError.

        The journal says so beforehand: a run that is killed between two names is finished by `resume`.
        """
        self._append({"publishing": [stamp_of(os.fstat(fd)) for fd in self.fds]})
        ours = published(self.plan)
        first = self.plan.files[0].path
        if force and len(self.paths) > 1 and 0 not in ours:  # an old first file must not stand among new others
            first.unlink(missing_ok=True)
        for n in reversed(range(len(self.paths))):
            if n in ours:
                self.paths[n].unlink(missing_ok=True)
            else:
                _rename(self.paths[n], self.plan.files[n].path, self.fds[n], force)
        folder = os.open(first.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.journal_path.unlink(missing_ok=True)
        self.close()

    def discard(self) -> None:
        """Removes everything unfinished, and what already has its name of an output that does not have them all."""
        names = [self.plan.files[n].path for n in published(self.plan)]
        for path in (*self.paths, *names, self.journal_path):
            path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        for fd in (*self.fds, self._journal):
            if fd is not None:
                os.close(fd)
        self.fds, self._journal = [], None

    def _clear_strangers(self, resume: bool) -> None:
        """Removes leftovers of runs that died. A locked one is alive; one of another plan cannot be resumed."""
        names = [
            (p, f".{f.path.name}.part-{self.plan.key}")
            for f in self.plan.files
            for p in f.path.parent.glob(f".{_escape(f.path.name)}.part-*")
        ]
        others = sorted(p for p, own in names if not p.name.startswith(own))
        with ExitStack() as locks:
            for path in others:
                if not path.name.endswith(".journal"):
                    _lock_stranger(path, locks)
            if others and resume:
                raise BadInput(
                    "the sources or the options changed since the interrupted run",
                    file=self.plan.files[0].path,
                    hint="run without --resume to start again",
                )
            for path in others:
                path.unlink(missing_ok=True)

    def _append(self, entry: object) -> None:
        assert self._journal is not None
        os.write(self._journal, (json.dumps(entry) + "\n").encode())
        os.fdatasync(self._journal)


def part_paths(plan: Plan) -> list[Path]:
    return [f.path.with_name(f".{f.path.name}.part-{plan.key}") for f in plan.files]


def published(plan: Plan) -> set[int]:
    """The numbers of the files that already have their names, of an output that was being given them."""
    return {
        n
        for n, (file, stamp) in enumerate(zip(plan.files, _read_journal(plan)[1], strict=False))
        if _has_stamp(file.path, stamp)
    }


def _journal_path(plan: Plan) -> Path:
    first = part_paths(plan)[0]
    return first.with_name(first.name + ".journal")


def _heading(plan: Plan) -> dict[str, Any]:
    return {"plan": plan.key, "jobs": len(plan.jobs)}


def _read_journal(plan: Plan) -> tuple[set[int], list[Stamp]]:
    """The jobs that are done, and the stamps of the files if they were being published; nothing of a damaged
    journal.
    """
    try:
        lines = [
            json.loads(line) for line in _journal_path(plan).read_bytes().split(b"\n")[:-1]
        ]  # the rest was cut off
    except (OSError, ValueError):
        return set(), []
    if not lines or lines[0] != _heading(plan):
        return set(), []
    every, done, stamps = set(range(len(plan.jobs))), set(), []
    for line in lines[1:]:
        if isinstance(line, dict) and len(line.get("publishing", ())) == len(plan.files):
            done, stamps = every, [tuple(s) for s in line["publishing"]]
        elif isinstance(line, list) and all(type(n) is int and n in every for n in line):
            done = done | set(line)
        else:
            return set(), []
    return done, stamps


def _has_stamp(path: Path, stamp: Stamp) -> bool:
    try:
        return stamp_of(path.lstat()) == stamp
    except OSError:
        return False


def _open_locked(path: Path, kept: bool) -> int:
    """A file of ours, locked. Before the lock is held another run may remove or replace it: then once more.

    Unless `kept`, it is made if need be, and never one that has a second name: that is a complete output.
    """
    while True:
        if path.is_symlink():
            path.unlink()
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if kept else os.O_CREAT), 0o644)
        if not _lock(fd):
            os.close(fd)
            raise _busy(path)
        if _is_named(path, fd):
            if kept or os.fstat(fd).st_nlink == 1:
                return fd
            path.unlink()
        os.close(fd)


def _is_named(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except OSError:
        return False


def _lock_stranger(path: Path, locks: ExitStack) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    locks.callback(os.close, fd)
    if not _lock(fd):
        raise _busy(path)


def io_error(e: OSError, path: Path, needed: int | None = None) -> OutputError:
    """An operating system's refusal as one of ours."""
    full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    need = f"{needed} bytes free" if full and needed else None
    return OutputError(
        f"cannot be written ({e.strerror})",
        file=path,
        expected=need,
        hint="free some space or write elsewhere" if full else None,
    )


def _escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        return e.errno not in (errno.EWOULDBLOCK, errno.EACCES)  # anything else: a file system without locks
    return True


def _busy(path: Path) -> OutputError:
    return OutputError("another run is writing this output", file=path, hint="wait for it, or write elsewhere")


def _rename(part: Path, final: Path, fd: int, force: bool) -> None:
    """Atomically; without `force`, a file that appeared meanwhile is left alone."""
    if not _is_named(part, fd):
        raise OutputError("the temporary file was replaced by someone else", file=part, hint="run again")
    if force:
        part.replace(final)
        return
    try:
        os.link(part, final)
    except FileExistsError:
        raise OutputError(
            "appeared while the output was being written", file=final, hint="add --force to replace it"
        ) from None
    except OSError:  # a file system without hard links
        if final.exists():
            raise OutputError(
                "appeared while the output was being written", file=final, hint="add --force to replace it"
            ) from None
        part.replace(final)
    else:
        part.unlink()
