"""Run a command as a container engine would: `unshare --mount --pid --fork python -P confined.py ROOT SPECIFICATION`.

The root file system is read-only, /tmp and the volumes are the only places to write; the process is
number 1 of its process namespace, has the image's user, no capabilities and no way to get any.
The network is the machine's. SPECIFICATION is JSON: argv, environment, user, folder, volumes (paths
in the container -> folders here). Started in new mount and process namespaces, by root.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

_PR_SET_NO_NEW_PRIVS = 38
_DEVICES = ("null", "zero", "random", "urandom")


def confine(root: Path, specification: dict[str, object]) -> None:
    """Turn this process into the command."""
    uid, gid = map(int, str(specification["user"]).split(":"))
    _mount("--make-rprivate", "/")
    _mount("--bind", root, root)
    volumes: dict[str, str] = specification["volumes"]  # type: ignore[assignment]
    _mount("-t", "tmpfs", "-o", "size=512m,mode=1777", "tmpfs", root / "tmp")
    _mount("-t", "proc", "proc", root / "proc")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root / "dev")
    for device in _DEVICES:
        (root / "dev" / device).touch()
        _mount("--bind", f"/dev/{device}", root / "dev" / device)
    (root / "dev" / "shm").mkdir()
    _mount("-t", "tmpfs", "-o", "size=1g,mode=1777", "tmpfs", root / "dev" / "shm")
    for inside, outside in volumes.items():
        target = root / inside.lstrip("/")
        if Path(outside).is_file():
            target.touch()
        _mount("--bind", outside, target)
    _mount("-o", "remount,bind,ro", root)
    os.chroot(root)
    os.chdir(str(specification["folder"]))
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError("no_new_privs is refused")
    argv: list[str] = specification["argv"]  # type: ignore[assignment]
    environment: dict[str, str] = specification["environment"]  # type: ignore[assignment]
    os.execvpe(argv[0], argv, environment)


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


if __name__ == "__main__":
    confine(Path(sys.argv[1]), json.loads(sys.argv[2]))
