"""The writer: plan, temporary files, failures. What it writes is checked in test_to_gguf.py, going on in
test_writer_resume.py.
"""

import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from helpers.crafted import GOLD
from helpers.writer_plans import HEADER, ROW_BYTES, ROWS, content, left_behind, make_plan

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.files import U8, Source
from gptoss_adapters.checkpoint.writing import plan as plans
from gptoss_adapters.checkpoint.writing.fills import Copied, Produced, SourceFile
from gptoss_adapters.checkpoint.writing.plan import Target
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.errors import BadInput, CheckFailed, OutputError


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.usefixtures("small_jobs")
def test_writes_header_tensors_and_zero_gaps(threads: int, tmp_path: Path) -> None:
    plan = make_plan(
        tmp_path, Produced(ROWS, ROW_BYTES, content), Produced(7, 3, lambda b, e: np.full((e - b) * 3, 9, np.uint8))
    )
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
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import test_writer as t; from pathlib import Path; "
        f"t.write(t.make_plan(Path({str(tmp_path)!r})))"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, check=False)
    assert (
        "OutputError" in done.stderr
        and "cannot be written (File too large)" in done.stderr
        and "704" not in done.stdout
    )
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
def test_read_back_of_repacked_rows_finds_a_flipped_bit(
    native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptoss_adapters.checkpoint.writing import native_stream
    from gptoss_adapters.checkpoint.writing.fills import Repacked

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
        monkeypatch.setattr("gptoss_adapters.checkpoint.writing.native_stream.available", lambda: False)
    source = tmp_path / "in"
    source.write_bytes(bytes(1_000_000))
    plan = make_plan(
        tmp_path,
        Copied(SourceFile(source), 0, 1_000_000, Source(source, "t", "U8", (1_000_000,), 0, 1_000_000)),
        sources=[source],
    )
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
