"""What is known of the machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lightning_rlhf.machine import peak_resident


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel counts for the program alone on Linux")
def test_the_peak_is_of_the_process_and_not_of_its_parent() -> None:
    held = bytearray(b"x") * (512 * 2**20)
    code = "from lightning_rlhf.machine import peak_resident; print(peak_resident())"
    found = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert peak_resident() > len(held)
    assert 2**20 < found < 256 * 2**20
