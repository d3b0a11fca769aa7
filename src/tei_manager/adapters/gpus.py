"""Which GPUs this machine has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

PROGRAM = "nvidia-smi"
TIMEOUT_SECS = 10.0
AMD_DEVICE = Path("/dev/kfd")


def uuids() -> tuple[str, ...] | None:
    """UUIDs of the NVIDIA GPUs in PCI bus order, none on a machine without any; None = could not be asked.

    Blocks for as long as the driver takes, at most 10 s.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        # without the driver's tool there is no NVIDIA device to speak of; AMD's cannot be listed here
        return None if AMD_DEVICE.exists() else ()
    try:
        run = subprocess.run(
            [program, "--query-gpu=uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(line.strip() for line in run.stdout.splitlines() if line.strip())
