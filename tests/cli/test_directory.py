import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.supervisor import ports
from service.supervisor.directory import DataDirectory, read_note
from service.supervisor.errors import DirectoryInUse, DirectoryUnusable, PortTaken


def test_a_directory_is_held_by_one_service(tmp_path: Path) -> None:
    first, second = DataDirectory(tmp_path / "data"), DataDirectory(tmp_path / "data")
    first.acquire()
    first.write_note({"pid": os.getpid(), "url": "http://127.0.0.1:9"})
    with pytest.raises(DirectoryInUse, match=rf"http://127.0.0.1:9 \(pid {os.getpid()}\)"):
        second.acquire()
    first.release()
    assert list((tmp_path / "data").iterdir()) == []
    second.acquire()
    second.release()


def test_a_directory_stays_held_while_a_child_has_the_lock(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.acquire()
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        pass_fds=(directory.lock_descriptor,),
    )
    os.close(directory.lock_descriptor)  # as the kernel does for a supervisor that is killed
    with pytest.raises(DirectoryInUse, match="starting or stopping"):
        DataDirectory(tmp_path).acquire(patience_s=0.2)
    child.communicate()
    successor = DataDirectory(tmp_path)
    successor.acquire()
    successor.release()


def test_a_note_of_a_killed_service_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text(json.dumps({"pid": 2**22 + 1, "url": "http://gone"}))
    directory = DataDirectory(tmp_path)
    directory.acquire()
    assert read_note(tmp_path) is None
    directory.release()


@pytest.mark.parametrize("text", ["", "[]", '{"url": '])
def test_an_unreadable_note_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "up.json").write_text(text)
    assert read_note(tmp_path) is None


def test_a_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DirectoryUnusable, match="--data-dir"):
        DataDirectory(tmp_path / "file").acquire()


def test_a_taken_port_names_its_holder_and_another_port() -> None:
    (free,) = ports.free_ports(1)
    assert ports.claim("127.0.0.1", free) == free
    assert ports.claim("127.0.0.1", 0) > 0
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(free), "--bind", "127.0.0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert server.stdout is not None
    server.stdout.readline()
    with pytest.raises(PortTaken) as refused:
        ports.claim("127.0.0.1", free)
    server.kill()
    server.communicate()
    assert str(refused.value).startswith(f"Port {free} on 127.0.0.1 is already in use by python")
    assert f"(pid {server.pid})" in str(refused.value)
    assert "--port " in str(refused.value)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(PortTaken, match=r"192\.0\.2\.1 is no address of this machine"):
        ports.claim("192.0.2.1", 0)


def test_free_ports_differ() -> None:
    assert len(set(ports.free_ports(20))) == 20
