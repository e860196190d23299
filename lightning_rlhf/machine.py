"""What memory there is: what may still be taken of the machine's, and what this process has taken."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def _lines(file: Path) -> list[str]:
    """Lines of a file of the kernel's; none where there is no such file."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _number(file: str) -> int | None:
    """The number in a file of the kernel's; None where there is none (`max`)."""
    try:
        return int(Path(file).read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        return None


def available_memory(root: str = "/") -> int:
    """Bytes of main memory that may still be taken: MemAvailable, and what this process's control groups leave (Linux; elsewhere
    no limit is known).

    Args:
        root: Of the file system, for tests.
    """
    base = Path(root)
    meminfo = dict(line.split(":", 1) for line in _lines(base / "proc/meminfo") if ":" in line)
    free = [int(meminfo["MemAvailable"].split()[0]) * 1024 if meminfo else sys.maxsize]
    for line in _lines(base / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        top = base / "sys/fs/cgroup" / ("" if not controllers else "memory")
        names = ("memory.max", "memory.current") if not controllers else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        here = top / path.strip("/")
        for folder in (here, *here.parents):
            if (limit := _number(str(folder / names[0]))) is not None:
                free.append(max(0, limit - (_number(str(folder / names[1])) or 0) + _reclaimable(folder)))
            if folder == top:
                break
    return min(free)


def _reclaimable(group: Path) -> int:
    """Page cache that a control group gives back when it must."""
    lines = (line for line in _lines(group / "memory.stat") if line)
    return next((int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "total_inactive_file")), 0)


def resident() -> int:
    """This process's resident bytes now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except OSError:
        return 0
    return pages * 4096


def peak_resident() -> int:
    """The most resident bytes that this process has had. Where the kernel counts them for the program alone (Linux), that: what
    `getrusage` says begins with the memory of whoever started it.
    """
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
