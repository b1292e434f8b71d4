"""Archives that were made to do harm, were cut off, or were half unpacked before."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from scaleaudio.errors import InputError
from scaleaudio.recipes import unpack as module
from scaleaudio.recipes.unpack import unpack

KINDS = ["a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz", "a.zip"]


def write(archive: Path, members: list[tuple[str, bytes]]) -> Path:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, data in members:
                opened.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        return archive
    with tarfile.open(archive, f"w:{archive.suffix[1:]}" if archive.suffix != ".tar" else "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return archive


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_members_come_out_with_their_bytes_and_paths(kind: str, tmp_path: Path) -> None:
    members = [(f"a/{number}/x.wav", os.urandom(number)) for number in (0, 1, 511, 512, 70_000)]
    done = unpack(write(tmp_path / kind, members), tmp_path / "out")
    assert files(tmp_path / "out") == dict(members) and done == (len(members), [])


@pytest.mark.parametrize("kind", ["a.tar", "a.zip"])
@pytest.mark.parametrize(
    "name", ["../out.wav", "/tmp/out.wav", "a/../../out.wav", "C:/out.wav", "a\\..\\out.wav", "x" * 256]
)
def test_names_that_lead_out_are_refused_and_the_rest_comes(kind: str, name: str, tmp_path: Path) -> None:
    archive = write(tmp_path / kind, [("good.wav", b"good"), (name, b"evil"), ("too.wav", b"good")])
    done = unpack(archive, tmp_path / "below" / "out")
    assert files(tmp_path / "below") == {"out/good.wav": b"good", "out/too.wav": b"good"}
    assert len(done.refused) == 1 and not (tmp_path / "out.wav").exists()


def test_links_devices_and_pipes_are_refused_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in [("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret")
            tar.addfile(info)
        info = tarfile.TarInfo("link/x.wav")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"data"))
    done = unpack(tmp_path / "a.tar", tmp_path / "out")
    assert [name for name, _ in done.refused] == ["link", "hard", "pipe"]
    assert files(tmp_path / "out") == {"link/x.wav": b"data"} and files(tmp_path / "secret") == {}


def test_a_zip_s_symbolic_link_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr(info, "/etc")
    assert unpack(tmp_path / "a.zip", tmp_path / "out") == (0, [("link", "not a regular file")])


def test_a_link_that_was_there_before_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "outside")
    (tmp_path / "out" / "b.wav").symlink_to(tmp_path / "outside" / "b.wav")
    done = unpack(write(tmp_path / "a.tar", [("a/x.wav", b"evil"), ("b.wav", b"mine")]), tmp_path / "out")
    assert done.refused == [("a/x.wav", "a link leads out of the folder")]
    assert files(tmp_path / "outside") == {} and (tmp_path / "out" / "b.wav").read_bytes() == b"mine"


def test_a_folder_and_a_file_of_one_name_do_not_end_it(tmp_path: Path) -> None:
    done = unpack(write(tmp_path / "a.tar", [("a", b"1"), ("a/b", b"2"), ("c/d", b"3"), ("c", b"4")]), tmp_path / "out")
    assert files(tmp_path / "out") == {"a": b"1", "c/d": b"3"} and [name for name, _ in done.refused] == ["a/b", "c"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [0, 3, 9000])
def test_an_archive_that_is_cut_off_is_an_error_in_one_line(kind: str, kept: int, tmp_path: Path) -> None:
    archive = write(tmp_path / kind, [(f"{number}.wav", os.urandom(3000)) for number in range(4)])
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cut off, damaged or no archive .*Download it again"):
        unpack(archive, tmp_path / "out")
    assert all(len(data) == 3000 for data in files(tmp_path / "out").values())


@pytest.mark.parametrize("kind", ["a.tar.gz", "a.zip"])
def test_a_bomb_is_refused_before_it_fills_the_disk(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SPARE_BYTES", 0)
    archive = write(tmp_path / kind, [("bomb.wav", bytes(1 << 22))])
    with pytest.raises(InputError, match="a bomb"):
        unpack(archive, tmp_path / "out")
    assert files(tmp_path / "out") == {}


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_unpacked_is_not_written_again_and_what_lacks_bytes_is(kind: str, tmp_path: Path) -> None:
    archive = write(tmp_path / kind, [("whole.wav", b"12345678"), ("half.wav", b"12345678"), ("none.wav", b"12345678")])
    unpack(archive, tmp_path / "out")
    before = (tmp_path / "out" / "whole.wav").stat().st_ino
    (tmp_path / "out" / "half.wav").write_bytes(b"1234")
    (tmp_path / "out" / "none.wav").unlink()
    assert unpack(archive, tmp_path / "out").files == 3
    assert set(files(tmp_path / "out").values()) == {b"12345678"}
    assert (tmp_path / "out" / "whole.wav").stat().st_ino == before


def test_one_part_of_several_says_how_to_join_them(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.zip", [("a.wav", os.urandom(5000))]).read_bytes()
    (tmp_path / "vox1_dev_wav_partaa").write_bytes(whole[:2500])
    with pytest.raises(InputError, match=r"cat vox1_dev_wav_part\* > vox1_dev_wav\.zip"):
        unpack(tmp_path / "vox1_dev_wav_partaa", tmp_path / "out")
    (tmp_path / "FSD50K.dev_audio.zip").write_bytes(whole[2500:])
    (tmp_path / "FSD50K.dev_audio.z01").write_bytes(whole[:2500])
    with pytest.raises(InputError, match=r"2 parts. Join them: zip -s 0 FSD50K\.dev_audio\.zip --out"):
        unpack(tmp_path / "FSD50K.dev_audio.zip", tmp_path / "out")


def test_members_larger_than_what_is_copied_at_once_come_whole(tmp_path: Path) -> None:
    members = [(f"{number}.wav", os.urandom(1 << 20) * 3 + b"end") for number in range(2)]
    unpack(write(tmp_path / "a.tar.gz", members), tmp_path / "out")
    assert files(tmp_path / "out") == dict(members)


def test_progress_adds_up_to_the_archive(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar", [(f"{number}.wav", os.urandom(100_000)) for number in range(5)])
    steps: list[int] = []
    unpack(archive, tmp_path / "out", steps.append)
    assert 500_000 <= sum(steps) <= archive.stat().st_size
