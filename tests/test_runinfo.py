"""Directories that are whole at every moment, and what a run's record says of memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lightning_rlhf import runinfo
from lightning_rlhf.files import exchange
from lightning_rlhf.machine import peak_resident
from lightning_rlhf.runinfo import atomic_directory


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


@pytest.mark.parametrize("swaps", [True, False])
def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool) -> None:
    if not swaps:
        monkeypatch.setattr(runinfo, "exchange", lambda one, other: False)
    path = tmp_path / "export"
    write(path, "old")
    with pytest.raises(TypeError):
        write(path, 1)  # type: ignore[arg-type]
    assert (path / "text").read_text() == "old"
    write(path, "new")
    assert (path / "text").read_text() == "new"
    assert [f.name for f in tmp_path.iterdir()] == ["export"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel counts for the program alone on Linux")
def test_the_peak_is_of_the_process_and_not_of_its_parent() -> None:
    held = bytearray(b"x") * (512 * 2**20)
    code = "from lightning_rlhf.machine import peak_resident; print(peak_resident())"
    found = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert peak_resident() > len(held)
    assert 2**20 < found < 256 * 2**20
