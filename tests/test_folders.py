"""Directories that are whole at every moment."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from lightning_rlhf import folders
from lightning_rlhf.folders import atomic_directory, exchange


def write(path: Path, text: str) -> None:
    with atomic_directory(path) as partial:
        (partial / "text").write_text(text)


def test_a_directory_is_there_at_every_moment_of_a_replacement(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system cannot exchange two names")
    path, missing, stop = tmp_path / "export", [], threading.Event()
    write(path, "0")

    def watch() -> None:
        while not stop.is_set():
            if not path.is_dir():
                missing.append(1)

    thread = threading.Thread(target=watch)
    thread.start()
    for i in range(300):
        write(path, str(i))
    stop.set()
    thread.join()
    assert not missing
    assert (path / "text").read_text() == "299"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b", "export"]


def test_names_are_on_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder's own entry, and that of the folder it is in, besides what is in its files."""
    synced: list[str] = []
    plain = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), plain(handle)))
    write(tmp_path / "export", "new")
    assert {Path(name).name.split("-")[0] for name in synced} == {".export.partial", "text", tmp_path.name}


@pytest.mark.parametrize("swaps", [True, False])
def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool) -> None:
    if not swaps:
        monkeypatch.setattr(folders, "exchange", lambda one, other: False)
    path = tmp_path / "export"
    write(path, "old")
    with pytest.raises(TypeError):
        write(path, 1)  # type: ignore[arg-type]
    assert (path / "text").read_text() == "old"
    write(path, "new")
    assert (path / "text").read_text() == "new"
    assert [f.name for f in tmp_path.iterdir()] == ["export"]
