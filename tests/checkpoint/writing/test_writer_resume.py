"""The writer after an interruption: journal, resume, and kills between the names of several files."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.writer_plans import HEADER, ROW_BYTES, ROWS, content, left_behind, make_plan

from gptoss_adapters.checkpoint.files import U8
from gptoss_adapters.checkpoint.writing import journal
from gptoss_adapters.checkpoint.writing.fills import Produced
from gptoss_adapters.checkpoint.writing.journal import Parts
from gptoss_adapters.checkpoint.writing.plan import Place, Plan, PlannedFile, Tensor, Work
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.errors import BadInput, OutputError


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
    files = tuple(
        PlannedFile(folder / f"out-{n}.bin", HEADER, (t,), (len(HEADER),), len(HEADER) + t.nbytes)
        for n, t in enumerate(tensors)
    )
    return Plan(files, tuple(Work(Produced(ROWS, ROW_BYTES, function), (Place(n, 0),)) for n in range(count)), {})


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("renamed", range(4))
def test_a_run_killed_between_two_names_is_finished_by_resume(
    renamed: int, force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert {f.path.read_bytes() for f in plan.files} == {HEADER + content(0, ROWS).tobytes()} and left_behind(
        tmp_path
    ) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from test_writer_resume import journal, make_files, write

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


@pytest.mark.parametrize(
    ("point", "after", "force"),
    [
        *(
            ("rename", n, True) for n in range(3)
        ),  # old files are replaced one by one; the kills without --force are in crash_driver.py
        *(
            (call, 0, force) for call in ("fdatasync", "fsync") for force in (False, True)
        ),  # the journal says so; all have their names
    ],
)
def test_sigkill_between_the_names_of_several_files(point: str, after: int, force: bool, tmp_path: Path) -> None:
    old = HEADER + (content(0, ROWS) ^ 1).tobytes()
    whole = HEADER + content(0, ROWS).tobytes()
    if force:
        write(make_files(tmp_path, 3, lambda b, e: content(b, e) ^ 1))
    command = [sys.executable, "-c", KILLED, str(tmp_path), point, str(after), str(force)]
    child = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    plan = make_files(tmp_path, 3)
    names = [f.path for f in plan.files]
    assert all(p.read_bytes() in (old, whole) for p in names if p.exists()), "a name stands on something incomplete"
    if names[0].exists() and names[0].read_bytes() == whole:
        assert all(p.read_bytes() == whole for p in names), "the first file, which opens the others, came before them"
    written = write(plan, resume=True, force=force)
    assert written.resumed == 3 * ROWS * ROW_BYTES
    assert {p.read_bytes() for p in names} == {whole} and left_behind(tmp_path) == []


def test_killed_between_the_link_and_the_removal_of_the_other_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_part_that_another_run_replaced_before_the_lock_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between open and lock, another run removes our file and makes its own; the one that then holds the name's
    lock goes on.
    """
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
@pytest.mark.parametrize(
    "line", [b"{\n", b"\xff\n", b"[100000]\n", b"[-1]\n", b'["a"]\n', b"7\n", b'{"publishing": [[1, 2, 3]]}\n[[1]]\n']
)
def test_a_damaged_journal_is_not_believed(line: bytes, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(make_plan(tmp_path, Stopping(True)))
    with next(tmp_path.glob(".*.journal")).open("ab") as f:
        f.write(line)
    assert write(make_plan(tmp_path, Stopping(False)), resume=True).resumed == 0
    assert (tmp_path / "out.bin").read_bytes()[64 : 64 + ROWS * ROW_BYTES] == content(0, ROWS).tobytes()
