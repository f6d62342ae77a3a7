"""Downloads from a real server that cuts, fails, lies, forgets and changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.weights import download as module
from models.weights.download import Downloaded, Patience, download, resolve
from models.weights.errors import (
    AccessRefused,
    DownloadError,
    HashMismatch,
    HostUnreachable,
    NoSpace,
    NotPublished,
    TransferFailed,
)
from tests.models.file_server import FileServer, file_server

CONTENT = os.urandom(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


class Pauses(list[float]):
    """Takes the pauses between attempts instead of sleeping."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def fetch(server: FileServer, folder: Path, path: str = "/w.pth", **options: object) -> Downloaded:
    return download(server.url + path, folder, sleep=Pauses(), **options)  # type: ignore[arg-type]


def unfinished(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


def ranges(server: FileServer) -> list[str | None]:
    return [headers.get("range") for _, headers in server.requests]


def test_a_whole_file_with_its_hash_and_its_progress(server: FileServer, tmp_path: Path) -> None:
    server.put("/w.pth", CONTENT)
    seen: list[tuple[int, int | None]] = []
    done = fetch(server, tmp_path, watch=lambda received, total: seen.append((received, total)))
    assert done.path.read_bytes() == CONTENT
    assert (done.sha256, done.bytes) == (SHA256, len(CONTENT))
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert list(tmp_path.iterdir()) == [done.path]


def test_a_complete_file_is_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    server.put("/w.pth", CONTENT)
    first = fetch(server, tmp_path)
    assert fetch(server, tmp_path, sha256=SHA256) == first
    assert len(server.requests) == 1


def test_a_cut_transfer_goes_on_where_it_stopped(server: FileServer, tmp_path: Path) -> None:
    file = server.put("/w.pth", CONTENT, cut_after=[1_000_000, 500_000])
    assert fetch(server, tmp_path).sha256 == SHA256
    assert ranges(server) == [None, "bytes=1000000-", "bytes=1500000-"]
    assert server.requests[1][1]["if-range"] == file.tag


@given(
    size=st.integers(0, 300_000),
    cuts=st.lists(st.integers(0, 300_000), max_size=6),
    ranges_until=st.integers(0, 7),
    etag=st.sampled_from(["strong", "weak", None]),
    told=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_wherever_it_is_cut_the_file_is_right_or_absent(
    size: int, cuts: list[int], ranges_until: int, etag: str | None, told: bool
) -> None:
    content = CONTENT[:size]
    with file_server() as server, tempfile.TemporaryDirectory() as folder:
        file = server.put("/w.pth", content, etag=etag, cut_after=[min(c, size) for c in cuts])

        def sleep(seconds: float) -> None:
            file.ranges = len(server.requests) < ranges_until

        sha256 = hashlib.sha256(content).hexdigest()
        options = {"sha256": sha256} if told else {}
        patience = Patience(attempts=3)
        try:
            done = download(
                server.url + "/w.pth", Path(folder), sleep=sleep, patience=patience, **options
            )
        except TransferFailed:
            assert {path.suffix for path in Path(folder).iterdir()} <= {".json", ".part"}
        else:
            assert done.path.read_bytes() == content
            assert (done.sha256, list(Path(folder).iterdir())) == (sha256, [done.path])


def test_a_later_command_goes_on_where_the_first_was_killed(
    server: FileServer, tmp_path: Path
) -> None:
    file = server.put("/w.pth", CONTENT, pause_s=0.01)
    code = (
        "import sys; from pathlib import Path; from models.weights.download import download\n"
        "watch = lambda received, total: received and print(received, flush=True)\n"
        "download(sys.argv[1], Path(sys.argv[2]), watch=watch)"
    )
    command = [sys.executable, "-c", code, server.url + "/w.pth", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(20):
            process.stdout.readline()
        with pytest.raises(DownloadError, match="another process"):
            fetch(server, tmp_path)
        process.send_signal(signal.SIGKILL)
    assert unfinished(tmp_path) == [".json", ".part"]
    file.pause_s = 0
    assert fetch(server, tmp_path).sha256 == SHA256
    asked = ranges(server)[-1]
    assert asked is not None
    assert int(asked.removeprefix("bytes=").removesuffix("-")) >= 65_536


def test_a_server_without_ranges_starts_again(server: FileServer, tmp_path: Path) -> None:
    server.put("/w.pth", CONTENT, ranges=False, cut_after=[1_000_000])
    assert fetch(server, tmp_path).sha256 == SHA256


def test_a_server_that_always_cuts_is_given_up(server: FileServer, tmp_path: Path) -> None:
    server.put("/w.pth", CONTENT, ranges=False, cut_after=[1_000_000] * 50)
    with pytest.raises(TransferFailed, match=r"connection lost .* 1\.0 MB are kept"):
        fetch(server, tmp_path, patience=Patience(attempts=4))
    assert len(server.requests) == 4
    assert unfinished(tmp_path) == [".json", ".part"]


def test_a_file_that_changed_is_fetched_from_its_beginning(
    server: FileServer, tmp_path: Path
) -> None:
    server.put("/w.pth", CONTENT[::-1], cut_after=[1_000_000])
    with pytest.raises(TransferFailed):
        fetch(server, tmp_path, patience=Patience(attempts=1))
    server.put("/w.pth", CONTENT)
    assert fetch(server, tmp_path).sha256 == SHA256


@pytest.mark.parametrize("etag", ["weak", None])
def test_without_a_validator_a_part_is_only_trusted_to_a_known_hash(
    server: FileServer, tmp_path: Path, etag: str | None
) -> None:
    server.put("/w.pth", CONTENT, etag=etag, cut_after=[1_000_000])
    assert fetch(server, tmp_path / "unknown").sha256 == SHA256
    assert ranges(server) == [None, None]
    server.put("/w.pth", CONTENT, etag=etag, cut_after=[1_000_000])
    assert fetch(server, tmp_path / "known", sha256=SHA256).sha256 == SHA256
    assert ranges(server)[2:] == [None, "bytes=1000000-"]


def test_a_part_that_is_already_whole_needs_no_more_bytes(
    server: FileServer, tmp_path: Path
) -> None:
    server.put("/w.pth", CONTENT)
    done = fetch(server, tmp_path)
    part = module.Part(done.path)
    with part:
        part.restart(
            module.Version(server.url + "/w.pth", server.files["/w.pth"].tag, 3_000_000, None)
        )
        part.append(CONTENT)
    done.path.unlink()
    assert fetch(server, tmp_path).sha256 == SHA256
    assert ranges(server)[-1] == "bytes=3000000-"


def test_a_wrong_hash_throws_the_file_away(server: FileServer, tmp_path: Path) -> None:
    server.put("/w.pth", CONTENT)
    with pytest.raises(HashMismatch, match=SHA256):
        fetch(server, tmp_path, sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []
    fetch(server, tmp_path)
    with pytest.raises(HashMismatch, match="0" * 64):
        fetch(server, tmp_path, sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_the_hash_that_the_hub_states_is_checked(server: FileServer, tmp_path: Path) -> None:
    path = "/o/r/resolve/main/w.pth"
    server.put(path, CONTENT, headers={"X-Linked-ETag": f'"{SHA256}"'})
    assert download("hf://o/r/w.pth", tmp_path, hub=server.url).sha256 == SHA256
    server.put(path, CONTENT[:-1], headers={"X-Linked-ETag": f'"{SHA256}"'})
    with pytest.raises(HashMismatch):
        download("hf://o/r/w.pth", tmp_path / "b", hub=server.url)


def test_a_hub_that_redirects_and_wants_a_login(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with file_server() as storage:
        storage.put("/blob", CONTENT, cut_after=[1_000_000])
        server.redirects["/o/r/resolve/main/a/w.pth"] = storage.url + "/blob"
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        done = download("hf://o/r/a/w.pth", tmp_path, sleep=Pauses())
        assert done.sha256 == SHA256
        assert [h["authorization"] for _, h in server.requests] == ["Bearer hf_secret"] * 2
        assert all("authorization" not in h for _, h in storage.requests)
        assert ranges(storage) == [None, "bytes=1000000-"]


def test_the_login_is_for_the_hub_alone(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.put("/w.pth", CONTENT)
    fetch(server, tmp_path)
    assert "authorization" not in server.requests[0][1]


def test_no_such_file(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(NotPublished, match=r"/w\.pth does not exist \(404"):
        fetch(server, tmp_path)
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_file_behind_a_login(server: FileServer, tmp_path: Path, status: int) -> None:
    server.put("/w.pth", CONTENT, statuses=[status])
    with pytest.raises(AccessRefused, match="HF_TOKEN"):
        fetch(server, tmp_path)


def test_a_server_that_fails_and_recovers(server: FileServer, tmp_path: Path) -> None:
    server.put("/w.pth", CONTENT, statuses=[500, 503, 429])
    pauses = Pauses()
    assert download(server.url + "/w.pth", tmp_path, sleep=pauses).sha256 == SHA256
    assert 0.25 <= pauses[0] <= 0.5 <= pauses[1] <= 1.0
    assert pauses[2] == 7


def test_a_server_that_keeps_failing(server: FileServer, tmp_path: Path) -> None:
    server.put("/w.pth", CONTENT, statuses=[503] * 50)
    with pytest.raises(TransferFailed, match="503 Service Unavailable, 6 times"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_silent_server_is_left(server: FileServer, tmp_path: Path) -> None:
    server.put("/w.pth", CONTENT[:20_000], pause_s=0.3)
    with pytest.raises(TransferFailed, match="timed out"):
        fetch(server, tmp_path, patience=Patience(attempts=1, silence_s=0.1))


def test_an_unexpected_answer(server: FileServer, tmp_path: Path) -> None:
    server.put("/w.pth", CONTENT, statuses=[418])
    with pytest.raises(TransferFailed, match="418"):
        fetch(server, tmp_path)
    server.put("/w.pth", CONTENT, headers={"Content-Encoding": "gzip"})
    with pytest.raises(TransferFailed, match="compressing"):
        fetch(server, tmp_path)


def test_offline(tmp_path: Path) -> None:
    with file_server() as gone:
        url = gone.url
    pauses = Pauses()
    with pytest.raises(HostUnreachable, match="cannot connect"):
        download(url + "/w.pth", tmp_path, sleep=pauses)
    assert len(pauses) == 2


def test_a_file_of_unknown_length_needs_a_hash(server: FileServer, tmp_path: Path) -> None:
    server.put("/w.pth", CONTENT, length=False, cut_after=[1_000_000])
    with pytest.raises(TransferFailed, match="nothing would show that it is whole"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.put("/w.pth", CONTENT, length=False)
    assert fetch(server, tmp_path, sha256=SHA256).sha256 == SHA256


def test_a_file_larger_than_the_disk_is_not_begun(server: FileServer, tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    server.put("/w.pth", b"x", length=False, headers={"Content-Length": str(free + 10**9)})
    with pytest.raises(NoSpace, match=r"has .* free"):
        fetch(server, tmp_path)


def test_a_disk_that_fills_up_keeps_what_arrived(server: FileServer, tmp_path: Path) -> None:
    server.put("/w.pth", CONTENT)
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from models.weights.download import download\n"
        "from models.weights.errors import NoSpace\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "try: download(sys.argv[1], Path(sys.argv[2]))\n"
        "except NoSpace as error: print(error)"
    )
    command = [sys.executable, "-c", code, server.url + "/w.pth", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "is kept" in said
    assert fetch(server, tmp_path).sha256 == SHA256
    assert ranges(server)[-1] is not None


@pytest.mark.parametrize("url", ["ftp://host/file", "hf://owner/repository", "hf://o//f", "w.pth"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(DownloadError, match="is no source"):
        resolve(url)


def test_names_on_the_hub_are_quoted() -> None:
    assert (
        resolve("hf://o/r/a b/c.pth", "http://mirror/")
        == "http://mirror/o/r/resolve/main/a%20b/c.pth"
    )
