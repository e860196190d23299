"""Folders and files that are whole or not there: locked, written aside, put in place in one step, replaced."""

import ctypes
import fcntl
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from .files import DataError, PathLike


@contextmanager
def alone(folder: PathLike, file: str | None = None) -> Iterator[None]:
    """No other process is in here with the same folder, which is made where it is missing; a killed one holds nothing.

    Args:
        folder: Where this process writes.
        file: Or a file of it alone, beside which a lock stands.

    Raises:
        DataError: One is.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    handle = os.open(Path(folder) / f".{file}.lock", os.O_RDWR | os.O_CREAT) if file else os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            there = Path(folder) / (file or "")
            problem = f"{there}: another process is writing there, expected none; wait for it, or name another folder"
            raise DataError(problem) from None
        yield
    finally:
        os.close(handle)


def point(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to a folder beside it, by rename."""
    partial = link.with_name(f".{link.name}.link")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, link.parent))
    partial.replace(link)


def remove(path: Path) -> None:
    """A file, a link or a folder with all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unwritable(folder: Path) -> str | None:
    """Why nothing can be written into a folder, which is made where it is not there; None where all is well."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{folder}: cannot be made ({error.strerror}), expected a folder that can be written to"
    return None if os.access(folder, os.W_OK) else f"{folder}: cannot be written to, expected a folder that can"


@contextmanager
def leaving_none(folder: Path) -> Iterator[None]:
    """A folder, and those it is in, that were not there and are empty afterwards are removed again."""
    made = [parent for parent in (folder, *folder.parents) if not os.path.exists(parent)]
    try:
        yield
    finally:
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


def never_writable(folder: Path) -> str | None:
    """`unwritable`, without leaving a folder that was not there; for one process alone."""
    with leaving_none(folder):
        return unwritable(folder)


def made_elsewhere(folder: PathLike, names: Iterable[str]) -> str | None:
    """Records in a folder that no command of ours made (there is no run.json), and that are not replaced; in words."""
    there = [name for name in names if (Path(folder) / name).exists()]
    if not there or (Path(folder) / "run.json").is_file():
        return None
    return f"output: {Path(folder) / there[0]} is there and was not made by this command (no run.json); expected another folder"


def exchange(one: Path, other: Path) -> bool:
    """Two files or folders swap their names in one step (Linux, `renameat2`); False where the system cannot."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    at_cwd, names_swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return swap is not None and swap(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), names_swap) == 0


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on disk."""
    for there in [path, *(path.rglob("*") if path.is_dir() else ())]:
        if there.is_file() or there.is_dir():
            sync_one(there)


def sync_one(path: Path) -> None:
    """Wait until a file is on disk, or the names in a folder (which some file systems do not offer)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():
            os.fsync(handle)
    finally:
        os.close(handle)


def put_in_place(partial: Path, path: Path) -> None:
    """Give what was written aside, a file or a folder, its name; what stood there is replaced.

    The name has the old one or the new one at every moment. A folder cannot replace a folder in one step, so it gets a name of
    its own beside `path`, which becomes a link to it. Older such folders are removed, those of a kill in between too; what
    another link points at, such as `path` with `.old`, is left alone.
    """
    sync(partial)
    own = re.compile(rf"\.{re.escape(path.name)}\.\d+")
    linked = {f.resolve() for f in path.parent.iterdir() if f.is_symlink() and f.name != path.name}
    older = [f for f in path.parent.iterdir() if own.fullmatch(f.name) and f.resolve() not in linked]
    if partial.is_file():
        partial.replace(path)
    else:
        folder = path.with_name(f".{path.name}.{time.time_ns()}")
        partial.rename(folder)
        point(path, folder)
    sync_one(path.parent)
    for folder in older:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`; on success it takes the name `path`, in one step where the system can.

    What is there is replaced, and is still there after a failure.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    remove(partial)
    partial.mkdir()
    try:
        yield partial
        sync(partial)
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        if path.exists() and not exchange(partial, path):
            path.rename(old)
        if not path.exists():
            partial.rename(path)
        sync_one(path.parent)
        with suppress(OSError):
            remove(old)
    finally:
        with suppress(OSError):
            remove(partial)
