"""Tell hosts and their spaces of process ids apart, and whether a process has ended.

Containers may share a host name, and a process id means something only in its own
space of process ids (its PID namespace). The Snakefile imports this module, so only
the standard library is imported here.
"""

import hashlib
import os
import re
import socket
from pathlib import Path


def _read_boot_id() -> str:
    """Read the kernel's id, new at every boot; the host's name if it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _read_machine_id() -> str | None:
    """Read the machine's name and lasting id; None where it has none (containers)."""
    try:
        lasting = Path("/etc/machine-id").read_text().strip()
    except OSError:
        return None
    return f"{socket.gethostname()} {lasting}" if lasting else None


def _read_pid_space() -> str:
    """Read the id of this process's PID namespace; nothing where there is none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


# Processes with the same boot id share a kernel, and so its locks.
BOOT_ID = _read_boot_id()
# With the same id and another boot id, this machine has been started again.
MACHINE_ID = _read_machine_id()
# Process ids may be compared only where this is the same: the host's name, and a digest
# of its kernel's and its PID namespace's ids. Letters, digits, "_" and "-" only.
PID_SPACE = "-".join(
    [
        re.sub(r"[^\w-]", "_", socket.gethostname()),
        hashlib.sha256(f"{BOOT_ID} {_read_pid_space()}".encode()).hexdigest()[:8],
    ]
)


def has_ended(pid_space: str, pid: int) -> bool:
    """Tell whether a process is known to have ended; False where nobody can tell."""
    if pid_space != PID_SPACE:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # it runs, under another user
    try:  # a zombie has ended, though its parent has not asked for its exit status
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in ("Z", "X")
