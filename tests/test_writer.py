"""The writer: plan, temporary files, journal, resume, failures. What it writes is checked in test_to_gguf.py."""

import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crafted import GOLD
from gptoss_converters.to_gguf import GgufOptions, plan_gguf

from gptoss_adapters.checkpoint import journal, open_checkpoint
from gptoss_adapters.checkpoint import plan as plans
from gptoss_adapters.checkpoint.files import U8, Source, stamp_of
from gptoss_adapters.checkpoint.fills import ChunkFill, Copied, Produced, SourceFile
from gptoss_adapters.checkpoint.journal import Parts
from gptoss_adapters.checkpoint.plan import Place, Plan, PlannedFile, Target, Tensor, Work
from gptoss_adapters.checkpoint.writer import write
from gptoss_adapters.errors import BadInput, CheckFailed, OutputError

HEADER = b"header".ljust(64, b"\0")
ROWS, ROW_BYTES = 1000, 640


def content(begin: int, end: int) -> U8:
    return np.arange(begin * ROW_BYTES, end * ROW_BYTES, dtype=np.uint32).astype(np.uint8)


def make_plan(folder: Path, *fills: ChunkFill, sources: Sequence[Path] = (), name: str = "out.bin") -> Plan:
    """One file: the header, then a tensor per fill, 64 bytes apart."""
    fills = fills or (Produced(ROWS, ROW_BYTES, content),)
    tensors, offsets, at = [], [], len(HEADER)
    for n, fill in enumerate(fills):
        tensors.append(Tensor(f"t{n}", "U8", (fill.rows, fill.row_bytes), fill.rows * fill.row_bytes, "made"))
        offsets.append(at)
        at += fill.rows * fill.row_bytes + 64
    file = PlannedFile(folder / name, HEADER, tuple(tensors), tuple(offsets), at)
    return Plan((file,), tuple(Work(f, (Place(0, n),)) for n, f in enumerate(fills)), {p: stamp_of(p.stat()) for p in sources})


@pytest.fixture
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "JOB_BYTES", 10_000)


def left_behind(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if "part" in p.name)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.usefixtures("small_jobs")
def test_writes_header_tensors_and_zero_gaps(threads: int, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, Produced(ROWS, ROW_BYTES, content), Produced(7, 3, lambda b, e: np.full((e - b) * 3, 9, np.uint8)))
    assert len(plan.jobs) > 60
    written = write(plan, threads=threads)
    expected = HEADER + content(0, ROWS).tobytes() + bytes(64) + b"\x09" * 21 + bytes(64)
    assert (tmp_path / "out.bin").read_bytes() == expected
    assert written.nbytes == len(expected) and set(written.seconds) == {"write", "sync", "read back"}
    assert left_behind(tmp_path) == []


def test_copied_bytes_of_any_length_and_offset(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 3_000_001, np.uint8)
    (tmp_path / "in").write_bytes(data.tobytes())
    file = SourceFile(tmp_path / "in")
    fills = []
    for offset, n in ((0, 1), (1, 4095), (17, 262_145), (3, 2_900_000), (2_999_999, 2)):
        fills.append(Copied(file, offset, n, Source(tmp_path / "in", "t", "U8", (n,), offset, n)))
    plan = make_plan(tmp_path, *fills, sources=[tmp_path / "in"])
    write(plan, sync=False)
    out = (tmp_path / "out.bin").read_bytes()
    for fill, at in zip(fills, plan.files[0].offsets, strict=True):
        offset = fill.inputs[0][1]
        assert out[at : at + fill.rows] == data[offset : offset + fill.rows].tobytes()


def test_an_existing_output_stays(tmp_path: Path) -> None:
    (tmp_path / "out.bin").write_bytes(b"old")
    with pytest.raises(OutputError, match=r"out.bin: exists already: add --force"):
        write(make_plan(tmp_path))
    assert (tmp_path / "out.bin").read_bytes() == b"old"
    write(make_plan(tmp_path), force=True)
    assert (tmp_path / "out.bin").read_bytes().startswith(HEADER)


def test_an_output_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    def function(begin: int, end: int) -> U8:
        (tmp_path / "out.bin").write_bytes(b"theirs")
        return content(begin, end)

    with pytest.raises(OutputError, match="appeared while"):
        write(make_plan(tmp_path, Produced(ROWS, ROW_BYTES, function)))
    assert (tmp_path / "out.bin").read_bytes() == b"theirs" and left_behind(tmp_path) == []


def test_a_missing_folder_and_a_folder_as_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such folder"):
        write(make_plan(tmp_path / "nowhere"))
    (tmp_path / "out.bin").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write(make_plan(tmp_path), force=True)


def test_space_is_checked_before_it_starts(tmp_path: Path) -> None:
    rows = 1 << 40
    with pytest.raises(OutputError, match=r"not enough space \(expected \d+ bytes free, got \d+\)") as e:
        write(make_plan(tmp_path, Produced(rows, ROW_BYTES, content)))
    assert e.value.exit_code == 4 and left_behind(tmp_path) == []


def test_a_file_size_limit_is_an_output_error(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk: in a child, because it cannot be raised again."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_writer as t; from pathlib import Path; t.write(t.make_plan(Path({str(tmp_path)!r})))"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, check=False)
    assert "OutputError" in done.stderr and "cannot be written (File too large)" in done.stderr and "704" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.usefixtures("small_jobs")
def test_a_write_that_fails_leaves_nothing(error: int, tmp_path: Path) -> None:
    class Failing(Produced):
        def write(self, begin: int, end: int, targets: Sequence[Target]) -> None:
            if begin > ROWS // 2:
                raise OSError(error, os.strerror(error))
            super().write(begin, end, targets)

    with pytest.raises(OutputError, match=os.strerror(error)) as e:
        write(make_plan(tmp_path, Failing(ROWS, ROW_BYTES, content)))
    assert e.value.exit_code == 4 and list(tmp_path.iterdir()) == []


def test_read_back_finds_a_flipped_bit(tmp_path: Path) -> None:
    class Flipping(Produced):
        def write(self, begin: int, end: int, targets: Sequence[Target]) -> None:
            super().write(begin, end, targets)
            fd, offset = targets[0]
            byte = os.pread(fd, 1, offset + 5000)[0] ^ 4
            os.pwrite(fd, bytes([byte]), offset + 5000)

    with pytest.raises(CheckFailed, match=r"out.bin: t0: byte 5000 read back differs"):
        write(make_plan(tmp_path, Flipping(ROWS, ROW_BYTES, content)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("native", [True, False])
def test_read_back_of_repacked_rows_finds_a_flipped_bit(native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss_adapters.checkpoint import native_stream
    from gptoss_adapters.checkpoint.fills import Repacked

    if not native:
        monkeypatch.setattr(native_stream, "available", lambda: False)
    rng = np.random.default_rng(1)
    (tmp_path / "in").write_bytes(rng.integers(0, 255, 600 * 5 * 17, np.uint8).tobytes())
    file = SourceFile(tmp_path / "in")
    fill = Repacked((file, 0), (file, 600 * 5 * 16), 300, 5, 2, Source(tmp_path / "in", "s", "U8", (600, 5), 0, 3000))
    with (tmp_path / "out").open("w+b") as f:
        targets = [(f.fileno(), 11), (f.fileno(), 40_000)]
        fill.write(0, 300, targets)
        assert fill.differs(0, 300, targets) is None
        for at, found in ((11 + 299 * 85 + 84, (0, 299 * 85 + 68)), (40_000 + 17 * 3 + 1, (1, 17 * 3))):
            byte = os.pread(f.fileno(), 1, at)
            os.pwrite(f.fileno(), bytes([byte[0] ^ 16]), at)
            tensor, where = fill.differs(100 if found[0] == 0 else 0, 300, targets) or (-1, -1)
            assert tensor == found[0] and 0 <= where - found[1] < 17
            os.pwrite(f.fileno(), byte, at)


def test_a_source_that_changes_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(bytes(1000))

    def function(begin: int, end: int) -> U8:
        os.utime(source, ns=(1, 1))
        return content(begin, end)

    with pytest.raises(BadInput, match=r"in: the file changed while it was being read"):
        write(make_plan(tmp_path, Produced(ROWS, ROW_BYTES, function), sources=[source]))
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_source_that_changes_between_opening_and_planning_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(GOLD / "src" / "tiny-mxfp4", source)
    checkpoint = open_checkpoint(source)
    with (source / "model.safetensors").open("r+b") as f:
        f.seek(-64, os.SEEK_END)
        f.write(bytes(64))
    with pytest.raises(BadInput, match="the file changed while it was being read"):
        write(plan_gguf(checkpoint, tmp_path / "out.gguf", GgufOptions()).plan)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("native", [True, False])
def test_a_source_that_shrinks_is_refused(native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mapping this would be a SIGBUS."""
    if not native:
        monkeypatch.setattr("gptoss_adapters.checkpoint.native_stream.available", lambda: False)
    source = tmp_path / "in"
    source.write_bytes(bytes(1_000_000))
    plan = make_plan(tmp_path, Copied(SourceFile(source), 0, 1_000_000, Source(source, "t", "U8", (1_000_000,), 0, 1_000_000)), sources=[source])
    os.truncate(source, 500_000)
    with pytest.raises(BadInput, match="in: the file shrank"):
        write(plan)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_two_writers_one_wins(tmp_path: Path) -> None:
    started, release = threading.Event(), threading.Event()

    def slow(begin: int, end: int) -> U8:
        started.set()
        release.wait(30)
        return content(begin, end)

    first = threading.Thread(target=lambda: write(make_plan(tmp_path, Produced(ROWS, ROW_BYTES, slow)), threads=1))
    first.start()
    started.wait(30)
    for plan in (make_plan(tmp_path), make_plan(tmp_path, Produced(ROWS + 1, ROW_BYTES, content))):
        with pytest.raises(OutputError, match="another run is writing"):
            write(plan)
    release.set()
    first.join()
    assert (tmp_path / "out.bin").stat().st_size == make_plan(tmp_path).nbytes and left_behind(tmp_path) == []


class Stopping(Produced):
    """Interrupts the run, as a signal would, once it has made half the rows; counts the rows it makes."""

    made = 0

    def __init__(self, stop: bool) -> None:
        super().__init__(ROWS, ROW_BYTES, self.rows_of)
        self.stop = stop

    def rows_of(self, begin: int, end: int) -> U8:
        Stopping.made += end - begin
        if self.stop and begin > ROWS // 2:
            raise KeyboardInterrupt
        return content(begin, end)


@pytest.mark.usefixtures("small_jobs")
def test_resume_continues_and_gives_the_same_bytes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(make_plan(tmp_path, Stopping(True)), threads=2)
    assert not (tmp_path / "out.bin").exists() and len(left_behind(tmp_path)) == 2
    Stopping.made = 0
    written = write(make_plan(tmp_path, Stopping(False)), resume=True, read_back=False)
    assert written.resumed > 0 and 0 < Stopping.made < ROWS
    write(make_plan(tmp_path, name="whole.bin"))
    assert (tmp_path / "out.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes() and left_behind(tmp_path) == []


@pytest.mark.usefixtures("small_jobs")
def test_without_resume_an_interrupted_run_starts_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(make_plan(tmp_path, Stopping(True)))
    assert write(make_plan(tmp_path)).resumed == 0 and left_behind(tmp_path) == []


@pytest.mark.usefixtures("small_jobs")
@pytest.mark.parametrize("changed", ["source", "options"])
def test_resume_refuses_when_source_or_options_changed(changed: str, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"1")
    with pytest.raises(KeyboardInterrupt):
        write(make_plan(tmp_path, Stopping(True), sources=[source]))
    if changed == "source":
        source.write_bytes(b"22")
        plan = make_plan(tmp_path, Stopping(False), sources=[source])
    else:
        plan = make_plan(tmp_path, Produced(ROWS + 1, ROW_BYTES, content), sources=[source])
    with pytest.raises(BadInput, match="changed since the interrupted run: run without --resume"):
        write(plan, resume=True)
    assert len(left_behind(tmp_path)) == 2
    write(plan)
    assert left_behind(tmp_path) == []


@pytest.mark.usefixtures("small_jobs")
def test_a_torn_journal_line_is_ignored(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(make_plan(tmp_path, Stopping(True)))
    file = next(tmp_path.glob(".*.journal"))
    with file.open("ab") as f:
        f.write(b"[1, 2, 3")
    write(make_plan(tmp_path, Stopping(False)), resume=True)
    assert (tmp_path / "out.bin").read_bytes()[64 : 64 + ROWS * ROW_BYTES] == content(0, ROWS).tobytes()


def test_a_lock_of_a_dead_run_does_not_matter(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    Parts(plan, resume=False).close()
    part = next(p for p in tmp_path.iterdir() if not p.name.endswith(".journal"))
    with part.open("rb") as f:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it
    write(plan)
    assert (tmp_path / "out.bin").exists()


def test_the_output_may_be_a_name_with_glob_characters(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, name="a[1]*?.bin")
    write(plan)
    assert plan.files[0].path.exists() and left_behind(tmp_path) == []


def test_a_symlink_in_the_way_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    plan = make_plan(tmp_path)
    plan.files[0].path.symlink_to(victim)
    with pytest.raises(OutputError, match="exists already"):
        write(plan)
    tmp_path.joinpath(f".out.bin.part-{plan.key}").symlink_to(victim)
    write(plan, force=True)
    assert victim.read_bytes() == b"precious" and not plan.files[0].path.is_symlink()


def make_files(folder: Path, count: int, function: Callable[[int, int], U8] = content) -> Plan:
    tensors = tuple(Tensor(f"t{n}", "U8", (ROWS, ROW_BYTES), ROWS * ROW_BYTES, "made") for n in range(count))
    files = tuple(PlannedFile(folder / f"out-{n}.bin", HEADER, (t,), (len(HEADER),), len(HEADER) + t.nbytes) for n, t in enumerate(tensors))
    return Plan(files, tuple(Work(Produced(ROWS, ROW_BYTES, function), (Place(n, 0),)) for n in range(count)), {})


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("renamed", range(4))
def test_a_run_killed_between_two_names_is_finished_by_resume(renamed: int, force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, rename, calls = make_files(tmp_path, 3), journal._rename, [renamed]
    if force:
        write(make_files(tmp_path, 3, lambda b, e: content(b, e) ^ 1))

    def killed(*arguments: Any) -> None:
        if not calls[0]:
            raise KeyboardInterrupt
        calls[0] -= 1
        rename(*arguments)

    monkeypatch.setattr(journal, "_rename", killed)
    if renamed < 3:
        with pytest.raises(KeyboardInterrupt):
            write(plan, force=force)
        assert not plan.files[0].path.exists(), "an old first file among new others, or the first before the others"
    monkeypatch.setattr(journal, "_rename", rename)
    written = write(plan, resume=True, force=force)
    assert renamed == 3 or written.resumed == 3 * ROWS * ROW_BYTES
    assert {f.path.read_bytes() for f in plan.files} == {HEADER + content(0, ROWS).tobytes()} and left_behind(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from test_writer import journal, make_files, write

folder, point, left, force = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "True"
calls = [left]
module, name = (journal, "_rename") if point == "rename" else (os, point)
real = getattr(module, name)

def killing(*arguments, **options):
    if point == "rename" and not calls[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*arguments, **options)
    calls[0] -= 1
    if point != "rename" and calls[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

real_publish = journal.Parts.publish
def publish(self, force):
    setattr(module, name, killing)  # from here on: earlier calls are not of the names
    real_publish(self, force)
journal.Parts.publish = publish
write(make_files(folder, 3), force=force)
"""


@pytest.mark.parametrize(("point", "after", "force"), [
    *(("rename", n, True) for n in range(3)),  # old files are replaced one by one; the kills without --force are in crash_driver.py
    *((call, 0, force) for call in ("fdatasync", "fsync") for force in (False, True)),  # the journal says so; all have their names
])  # fmt: skip
def test_sigkill_between_the_names_of_several_files(point: str, after: int, force: bool, tmp_path: Path) -> None:
    old = HEADER + (content(0, ROWS) ^ 1).tobytes()
    whole = HEADER + content(0, ROWS).tobytes()
    if force:
        write(make_files(tmp_path, 3, lambda b, e: content(b, e) ^ 1))
    command = [sys.executable, "-c", KILLED, str(tmp_path), point, str(after), str(force)]
    child = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    plan = make_files(tmp_path, 3)
    names = [f.path for f in plan.files]
    assert all(p.read_bytes() in (old, whole) for p in names if p.exists()), "a name stands on something incomplete"
    if names[0].exists() and names[0].read_bytes() == whole:
        assert all(p.read_bytes() == whole for p in names), "the first file, which opens the others, came before them"
    written = write(plan, resume=True, force=force)
    assert written.resumed == 3 * ROWS * ROW_BYTES
    assert {p.read_bytes() for p in names} == {whole} and left_behind(tmp_path) == []


def test_killed_between_the_link_and_the_removal_of_the_other_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, unlink = make_plan(tmp_path), Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(plan)
    monkeypatch.setattr(Path, "unlink", unlink)
    assert plan.files[0].path.stat().st_nlink == 2
    kept = tmp_path / "kept.bin"
    plan.files[0].path.rename(kept)
    before = kept.read_bytes()
    write(make_plan(tmp_path))
    assert kept.read_bytes() == before, "the other name of a complete output was written to"


def test_publishing_that_fails_takes_its_names_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, rename = make_files(tmp_path, 3), journal._rename

    def failing(part: Path, final: Path, fd: int, force: bool) -> None:
        if final == plan.files[1].path:
            raise OSError(errno.EIO, "Input/output error")
        rename(part, final, fd, force)

    monkeypatch.setattr(journal, "_rename", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        write(plan)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_another_run_replaced_before_the_lock_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between open and lock, another run removes our file and makes its own; the one that then holds the name's lock goes on."""
    lock, other = journal._lock, []

    def late(fd: int) -> bool:
        if not other:
            part = journal.part_paths(make_plan(tmp_path))[0]
            part.unlink()
            other.append(os.open(part, os.O_RDWR | os.O_CREAT))
            fcntl.flock(other[0], fcntl.LOCK_EX)
        return lock(fd)

    monkeypatch.setattr(journal, "_lock", late)
    with pytest.raises(OutputError, match="another run is writing"):
        write(make_plan(tmp_path))
    os.close(other[0])
    write(make_plan(tmp_path))
    assert (tmp_path / "out.bin").stat().st_size == make_plan(tmp_path).nbytes


def test_a_part_that_was_replaced_is_not_published(tmp_path: Path) -> None:
    def replacing(begin: int, end: int) -> U8:
        for part in tmp_path.glob(".*part*[!l]"):
            part.unlink()
            part.write_bytes(b"")
        return content(begin, end)

    with pytest.raises(OutputError, match="replaced by someone else"):
        write(make_plan(tmp_path, Produced(ROWS, ROW_BYTES, replacing)))
    assert not (tmp_path / "out.bin").exists()


@pytest.mark.usefixtures("small_jobs")
@pytest.mark.parametrize("line", [b"{\n", b"\xff\n", b"[100000]\n", b"[-1]\n", b'["a"]\n', b"7\n", b'{"publishing": [[1, 2, 3]]}\n[[1]]\n'])
def test_a_damaged_journal_is_not_believed(line: bytes, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(make_plan(tmp_path, Stopping(True)))
    with next(tmp_path.glob(".*.journal")).open("ab") as f:
        f.write(line)
    assert write(make_plan(tmp_path, Stopping(False)), resume=True).resumed == 0
    assert (tmp_path / "out.bin").read_bytes()[64 : 64 + ROWS * ROW_BYTES] == content(0, ROWS).tobytes()


def test_threads_are_few_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    def function(begin: int, end: int) -> U8:
        seen.add(threading.active_count() - before)
        return content(begin, end)

    before = threading.active_count()
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(plans, "JOB_BYTES", ROW_BYTES)
    write(make_plan(tmp_path, Produced(ROWS, ROW_BYTES, function)))
    assert 1 <= max(seen) <= 4


def test_force_replaces_neither_a_device_nor_an_input(tmp_path: Path) -> None:
    """`-o /dev/null --force` made a file of the machine's null device; an input may be the only copy of its weights."""
    os.mkfifo(tmp_path / "out.bin")
    for force in (False, True):
        with pytest.raises(OutputError, match=r"out.bin: is not a regular file: name another file"):
            write(make_plan(tmp_path), force=force)
    assert (tmp_path / "out.bin").is_fifo() and left_behind(tmp_path) == []
    (tmp_path / "out.bin").unlink()
    (tmp_path / "out.bin").write_bytes(b"weights")
    os.link(tmp_path / "out.bin", tmp_path / "other name")
    for source in ("out.bin", "other name"):
        with pytest.raises(OutputError, match=r"out.bin: is one of the inputs: write elsewhere"):
            write(make_plan(tmp_path, sources=[tmp_path / source]), force=True)
    assert (tmp_path / "out.bin").read_bytes() == b"weights" and left_behind(tmp_path) == []
