"""Files and directories that appear whole or not at all."""

import errno
import stat
from pathlib import Path

import pytest

from r2_serve import files
from r2_serve.files import (
    network_file_system,
    new_directory,
    open_database,
    read_lines,
    whole_file,
    write_whole,
)


def test_failed_write_leaves_the_old_text_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new, but not UTF-8: \ud800")
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write("half of it")
        raise RuntimeError
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_names_the_file_and_not_its_draft(tmp_path: Path) -> None:
    path = tmp_path / "book"
    with pytest.raises(OSError, match="No space left") as caught, whole_file(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as missing:
        write_whole(tmp_path / "nowhere" / "book", "text")
    assert missing.value.filename == str(tmp_path / "nowhere" / "book")


def test_replaced_file_keeps_its_link_and_its_permissions(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real.name)
    write_whole(link, "new\n")
    assert link.is_symlink()
    assert (real.read_text(), stat.S_IMODE(real.stat().st_mode)) == ("new\n", 0o640)


def test_directory_appears_when_its_block_ends_without_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_directory(tmp_path / "adapter") as draft:
        (draft / "weights").write_bytes(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_directory(tmp_path / "adapter") as draft:
        (draft / "weights").write_bytes(b"whole")
        assert not (tmp_path / "adapter").exists()
    assert (tmp_path / "adapter" / "weights").read_bytes() == b"whole"
    with pytest.raises(OSError, match="not empty"), new_directory(tmp_path / "adapter"):
        pass


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "rows.jsonl"
    write_whole(path, f'"a{separator}b"\n\n"c"')
    assert read_lines(path) == [f'"a{separator}b"', '"c"']


def test_byte_order_mark_is_not_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": 1}\r\n')
    assert read_lines(path) == ['{"id": 1}']


def mounts(tmp_path: Path) -> Path:
    """A table of mounts in which `shared` is on NFS, with a local directory below."""
    table = tmp_path / "mounts"
    lines = [
        "/dev/sda1 / ext4 rw 0 0",
        f"nfs.example:/export {tmp_path}/shared nfs4 rw,hard 0 0",
        f"tmpfs {tmp_path}/shared/local tmpfs rw 0 0",
        f"me@host:/ {tmp_path}/with\\040space fuse.sshfs rw 0 0",
        f"/dev/sdb1 {tmp_path}/shared-not ntfs rw 0 0",
    ]
    table.write_text("\n".join(lines) + "\n")
    return table


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("shared/spend.sqlite", "nfs4"),
        ("shared/not/there/yet.sqlite", "nfs4"),
        ("shared/local/spend.sqlite", None),
        ("shared-not/spend.sqlite", None),
        ("with space/spend.sqlite", "fuse.sshfs"),
        ("spend.sqlite", None),
    ],
)
def test_network_file_system_is_that_of_the_deepest_mount(tmp_path: Path, place: str, kind: str) -> None:
    assert network_file_system(tmp_path / place, mounts(tmp_path)) == kind


def test_every_path_is_local_where_no_mounts_are_listed(tmp_path: Path) -> None:
    assert network_file_system(tmp_path, tmp_path / "missing") is None


def test_database_on_a_network_file_system_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "MOUNTS", mounts(tmp_path))
    (tmp_path / "shared").mkdir()
    for folder, has_warning in ((tmp_path, False), (tmp_path / "shared", True)):
        open_database(folder / "spend.sqlite", "CREATE TABLE IF NOT EXISTS t (x)").close()
        assert ("SQLite loses writes" in caplog.text) is has_warning
