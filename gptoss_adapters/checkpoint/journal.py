"""The unfinished output: temporary files beside the final names, locked against a second writer, and a journal to resume from.

    .NAME.part-KEY          the output as far as it is (KEY: the plan's, so other inputs or options give another name)
    .NAME.part-KEY.journal  one JSON line per commit: the jobs whose bytes are on the disk
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path

from gptoss_adapters.checkpoint.plan import Plan
from gptoss_adapters.errors import BadInput, OutputError


class Parts:
    """The temporary files of a plan, open and locked; `done` holds the jobs that an earlier run completed.

    Raises OutputError when another run is writing or a file cannot be made, BadInput when `resume` finds another plan's files.
    """

    def __init__(self, plan: Plan, resume: bool) -> None:
        self.plan = plan
        self.paths = [f.path.with_name(f".{f.path.name}.part-{plan.key}") for f in plan.files]
        self.journal_path = self.paths[0].with_name(self.paths[0].name + ".journal")
        self._clear_strangers(resume)
        self.fds: list[int] = []
        self.done: set[int] = set()
        # A second link is the final name: that run was killed just after it was given, and is complete.
        kept = resume and self.journal_path.exists() and all(p.exists() and p.stat().st_nlink == 1 for p in self.paths)
        try:
            for path in self.paths:
                self.fds.append(self._open(path, kept))
            if kept:
                self.done = self._read_journal()
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | (0 if self.done else os.O_TRUNC)
            self._journal = os.open(self.journal_path, flags, 0o644)
            if not self.done:
                self._append({"plan": plan.key, "jobs": len(plan.jobs)})
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
        os.fdatasync(self._journal)

    def publish(self, force: bool) -> None:
        """Gives the complete files their names, the first one last, and makes that durable. Raises OSError, OutputError."""
        for path, planned in reversed(list(zip(self.paths, self.plan.files, strict=True))):
            _rename(path, planned.path, force)
        folder = os.open(self.plan.files[0].path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.journal_path.unlink(missing_ok=True)
        self.close()

    def discard(self) -> None:
        """Removes everything unfinished."""
        for path in (*self.paths, self.journal_path):
            path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        for fd in (*self.fds, *([self._journal] if hasattr(self, "_journal") else [])):
            os.close(fd)
        self.fds, self.__dict__["_journal"] = [], -1
        del self._journal

    def _open(self, path: Path, kept: bool) -> int:
        if not kept:
            path.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if kept else os.O_CREAT | os.O_EXCL)
        fd = os.open(path, flags, 0o644)
        if not _lock(fd):
            os.close(fd)
            raise _busy(path)
        return fd

    def _clear_strangers(self, resume: bool) -> None:
        """Leftovers of runs that died. A locked one is alive; one of another plan cannot be resumed."""
        first = self.plan.files[0].path
        for path in sorted(first.parent.glob(f".{_escape(first.name)}.part-*")):
            if not path.name.endswith(".journal"):
                _refuse_live(path)
        others = [p for f in self.plan.files for p in f.path.parent.glob(f".{_escape(f.path.name)}.part-*") if not p.name.startswith(f".{f.path.name}.part-{self.plan.key}")]
        if others and resume:
            raise BadInput("the sources or the options changed since the interrupted run", file=first, hint="run without --resume to start again")
        for path in others:
            path.unlink(missing_ok=True)

    def _append(self, entry: object) -> None:
        os.write(self._journal, (json.dumps(entry) + "\n").encode())

    def _read_journal(self) -> set[int]:
        done: set[int] = set()
        lines = self.journal_path.read_bytes().split(b"\n")
        if not lines or lines[0] != json.dumps({"plan": self.plan.key, "jobs": len(self.plan.jobs)}).encode():
            return done
        for line in lines[1:-1]:  # what follows the last line end was cut off
            done.update(json.loads(line))
        return done


def io_error(e: OSError, path: Path, needed: int | None = None) -> OutputError:
    """An operating system's refusal as one of ours."""
    full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    need = f"{needed} bytes free" if full and needed else None
    return OutputError(f"cannot be written ({e.strerror})", file=path, expected=need, hint="free some space or write elsewhere" if full else None)


def _escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        return e.errno not in (errno.EWOULDBLOCK, errno.EACCES)  # anything else: a file system without locks
    return True


def _refuse_live(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not _lock(fd):
            raise _busy(path)
    finally:
        os.close(fd)


def _busy(path: Path) -> OutputError:
    return OutputError("another run is writing this output", file=path, hint="wait for it, or write elsewhere")


def _rename(part: Path, final: Path, force: bool) -> None:
    """Atomically; without `force`, a file that appeared meanwhile is left alone."""
    if force:
        part.replace(final)
        return
    try:
        os.link(part, final)
    except FileExistsError:
        raise OutputError("appeared while the output was being written", file=final, hint="add --force to replace it") from None
    except OSError:  # a file system without hard links
        if final.exists():
            raise OutputError("appeared while the output was being written", file=final, hint="add --force to replace it") from None
        part.replace(final)
    else:
        part.unlink()
