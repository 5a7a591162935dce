"""sha256 of sources and outputs while they are being converted, on threads of their own that follow the writers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

from gptoss_adapters.checkpoint.writing.fills import SourceFile, read_at
from gptoss_adapters.checkpoint.writing.plan import Plan, Seal

_PIECE = 1 << 20
Wait = Callable[[int], bool]  # blocks until the job with this number is done; False: the run failed


class Followers:
    """Starts hashing what the plan's seals ask for; `finish` gives each seal its hex digest. Empty without seals."""

    def __init__(self, plan: Plan, fds: list[int], wait: Wait) -> None:
        self.plan, self.fds, self.wait = plan, fds, wait
        self.digests: dict[Seal, str] = {}
        self.errors: list[BaseException] = []
        by_kind = ([s for s in plan.seals if s.of == kind] for kind in ("source", "data"))
        self.threads = [threading.Thread(target=self._follow, args=(seals,), daemon=True) for seals in by_kind if seals]
        for thread in self.threads:
            thread.start()

    def finish(self) -> dict[Seal, str]:
        """Waits for the hashes. Raises what went wrong on the way."""
        for thread in self.threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        return self.digests

    def _follow(self, seals: list[Seal]) -> None:
        try:
            for seal in seals:
                digest = self._source(seal.index) if seal.of == "source" else self._data(seal.index)
                if digest is None:
                    return
                self.digests[seal] = digest
        except BaseException as e:
            self.errors.append(e)

    def _source(self, number: int) -> str:
        path, (size, *_) = list(self.plan.sources.items())[number]
        file = SourceFile(path)
        state = hashlib.sha256()
        for at in range(0, size, _PIECE):
            state.update(file.read(at, min(_PIECE, size - at)).data)
        return state.hexdigest()

    def _data(self, number: int) -> str | None:
        """From the end of the header to the end of the file, as far as jobs have filled it, in order."""
        file, fd = self.plan.files[number], self.fds[number]
        state, at = hashlib.sha256(), len(file.header)
        for end, job in [*self._extents(number), (file.size, None)]:
            if job is not None and not self.wait(job):
                return None
            while at < end:
                piece = read_at(fd, at, min(_PIECE, end - at))
                state.update(piece.data)
                at += piece.size
        return state.hexdigest()

    def _extents(self, number: int) -> list[tuple[int, int]]:
        """(end in the file, job) of everything that is written to it, in file order."""
        out = []
        for n, job in enumerate(self.plan.jobs):
            work = self.plan.works[job.work]
            ends = zip(work.places, work.fill.widths, strict=True)
            out += [
                (self.plan.files[number].offsets[p.tensor] + job.end * width, n)
                for p, width in ends
                if p.file == number
            ]
        return sorted(out)
