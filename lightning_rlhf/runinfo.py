"""run.json: what made an artefact: command, config, seed, commit, versions, data hashes, seconds, peak memory."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from .files import file_sha256, members
from .machine import peak_resident

PACKAGES = ("lightning-rlhf", "torch", "pytorch-lightning", "transformers", "torchmetrics", "numpy")


def commit() -> str | None:
    """The source's git commit, with `+` where the tree has uncommitted changes; None outside a checkout, and where the
    repository around it is another's, as that of an environment inside somebody's project."""
    root = Path(__file__).resolve().parent.parent
    try:
        run = lambda *a: subprocess.run(("git", "-C", str(root), *a), capture_output=True, text=True, timeout=10, check=True)  # noqa: E731
        run("ls-files", "--error-unmatch", __file__)
        dirty = run("status", "--porcelain", "--untracked-files=no").stdout.strip()
        return run("rev-parse", "--short=12", "HEAD").stdout.strip() + ("+" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """This process's command line, as it can be typed again: `python -m PACKAGE` for a package's `__main__`."""
    program = Path(sys.argv[0])
    words = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*words, *sys.argv[1:]])


class RunInfo:
    """Started with a stage, written at its end. Paths in `data` are hashed when the record is made."""

    def __init__(self, stage: str, seed: int | None, config: Any = None, data: list[str | Path] | None = None) -> None:
        self.stage, self.seed, self.config, self.data = stage, seed, config, data or []
        self.began = time.time()

    def record(self, **more: Any) -> dict[str, Any]:
        """The record as plain data; `more` adds fields (a stage's figures)."""
        return {
            "stage": self.stage,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command(),
            "seed": self.seed,
            "commit": commit(),
            "versions": versions(),
            "data": {file: file_sha256(file) for p in self.data for file in members(p)},
            "seconds": round(time.time() - self.began, 1),
            "peak_memory_mb": round(peak_resident() / 2**20),
            "config": self.config,
            **more,
        }

    def write(self, directory: str | Path, **more: Any) -> dict[str, Any]:
        """Write `run.json` into the directory, by rename; returns the record."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f".run.json.{os.getpid()}"
        record = self.record(**more)
        temporary.write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")
        temporary.replace(directory / "run.json")
        return record
