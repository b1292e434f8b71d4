"""Tars that others made, odd and hostile ones too: indexed, or named with a true reason; none ends the rest."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset
from streams import bytes_of

from scaleaudio.data.index import REJECTS_NAME, ShardIndex
from scaleaudio.data.parquet import read_parquet
from scaleaudio.data.scan import index
from scaleaudio.data.shards import verify
from scaleaudio.errors import InputError

RATE_HZ = 8000
Header = bytearray


def flac(seed: int = 0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).uniform(-0.5, 0.5, 800), RATE_HZ, format="FLAC")
    return file.getvalue()


def tar(members: Iterable[tuple[str | tarfile.TarInfo, bytes]], dialect: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=dialect) as out:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data) if info.isreg() else 0
            out.addfile(info, io.BytesIO(data))
    return file.getvalue()


def info(name: str, **values: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(made, key, value)
    return made


def header(data: bytes, at: int, change: Callable[[Header], None]) -> bytes:
    """`data` with the tar header at `at` changed, and its checksum made right again."""
    block = bytearray(data[at : at + 512])
    change(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:at] + bytes(block) + data[at + 512 :]


def size_field(value: bytes) -> Callable[[Header], None]:
    def change(block: Header) -> None:
        block[124:136] = value

    return change


def pax(content: bytes, *, claimed: bytes | None = None) -> bytes:
    """A tar whose first member has `content` as its PAX header."""
    extra = tarfile.TarInfo("paxheader")
    extra.type, extra.size = tarfile.XHDTYPE, len(content)
    block = extra.tobuf() + content + bytes(-len(content) % 512)
    if claimed is not None:
        block = header(block, 0, size_field(claimed))
    return block + tar([("a.flac", flac())])


def record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def rejects(folder: Path) -> dict[str, str]:
    return {row["path"]: row["reason"] for row in read_parquet(f"{folder}/{REJECTS_NAME}").to_pylist()}


def rows(folder: Path) -> list[tuple[str, bytes]]:
    """(key, bytes of the audio, by one ranged read) of every indexed sample."""
    shards = ShardIndex.load(str(folder))
    return [
        (row["key"], bytes_of(shards.shard_url(shard), row))
        for shard in range(len(shards.shards))
        for row in shards.samples(shard).to_pylist()
    ]


GOOD = tar([("good.flac", flac(9))])
SMALL = tar([("a.flac", flac())])
LONG_LINKS = b"".join(
    header(
        tarfile.TarInfo("././@LongLink").tobuf(tarfile.GNU_FORMAT), 0, lambda block: block.__setitem__(156, ord("L"))
    )
    for _ in range(3000)
)
NEGATIVE = (-2048).to_bytes(12, "big", signed=True)
HOSTILE = {
    "empty": (b"", "an empty file"),
    "words": (b"no tar at all, only words " * 40, "invalid header|a header|bad checksum"),
    "zip in disguise": (b"\x1f\x8b" + SMALL, r"compressed \(gzip\)"),
    "negative size": (header(SMALL, 0, size_field(NEGATIVE)), "leads back"),
    "size beyond the end": (header(SMALL, 0, size_field(b"77777777777\0")), "cut off"),
    "size beyond 64 bits": (header(SMALL, 0, size_field(b"\x80" + b"\x7f" * 11)), "cut off"),
    "negative pax size": (pax(record("size", "-5120")), "leads back"),
    "pax size beyond the end": (pax(record("size", str(10**15))), "cut off"),
    "pax of 10 TB": (pax(b"", claimed=b"\x80" + (10**13).to_bytes(11, "big")), "claims 10000000000"),
    "pax of negative length": (pax(b"", claimed=NEGATIVE), "claims -"),
    "pax of digits": (pax(b"1" * 60_000), "a number of over 1000 digits"),
    "sparse map without end": (
        pax(record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.realsize", "9")),
        "header|literal",
    ),
    "sparse pax numbers": (pax(record("GNU.sparse.map", "x,y")), "literal|header"),
    "headers in headers": (LONG_LINKS + SMALL, "recursion|header"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("headers_only", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_named_with_the_reason_and_the_rest_is_indexed(
    tmp_path: Path, name: str, headers_only: bool
) -> None:
    data, reason = HOSTILE[name]
    (tmp_path / "a.tar").write_bytes(data)
    (tmp_path / "b.tar").write_bytes(GOOD)
    tracemalloc.start()
    summary = index(str(tmp_path), headers_only=headers_only)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20
    assert rows(tmp_path) == [("good", flac(9))]
    ((path, found),) = rejects(tmp_path).items()
    assert path == "a.tar" and re.search(reason, found), found
    assert summary.rejects == ((path, found),)


def test_links_devices_pipes_and_sparse_members_are_named_and_never_followed(tmp_path: Path) -> None:
    members = [
        (info("s.flac", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
        (info("h.flac", type=tarfile.LNKTYPE, linkname="../../x.flac"), b""),
        (info("d.flac", type=tarfile.CHRTYPE, devmajor=1, devminor=5), b""),
        (info("p.flac", type=tarfile.FIFOTYPE), b""),
        (info("folder.flac", type=tarfile.DIRTYPE), b""),
        ("../../escape.flac", flac(1)),
        ("/srv/absolute.flac", flac(2)),
        (info("both.flac", type=tarfile.SYMTYPE, linkname="x"), b""),
        ("both.wav", flac(3)),
    ]
    (tmp_path / "a.tar").write_bytes(tar(members))
    index(str(tmp_path))
    assert rows(tmp_path) == [("../../escape", flac(1)), ("/srv/absolute", flac(2)), ("both", flac(3))]
    assert rejects(tmp_path) == {
        "a.tar/s": "s.flac is a symbolic link",
        "a.tar/h": "h.flac is a hard link",
        "a.tar/d": "d.flac is a device",
        "a.tar/p": "p.flac is a named pipe",
    }
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "index.parquet", "rejects.parquet", "samples"]


def test_a_sparse_member_of_10_gb_is_named_and_not_read(tmp_path: Path) -> None:
    hole = tmp_path / "hole.flac"
    with hole.open("wb") as file:
        file.truncate(10 << 30)
    (tmp_path / "in").mkdir()
    for number, dialect in enumerate(("gnu", "posix")):
        command = ["tar", "--sparse", f"--format={dialect}", "-cf", f"{tmp_path}/in/{number}.tar", "-C", str(tmp_path)]
        subprocess.run([*command, "hole.flac"], check=True)
    (tmp_path / "in" / "good.tar").write_bytes(GOOD)
    index(f"{tmp_path}/in")
    sparse = "hole.flac is stored sparse: it has no bytes at one place"
    assert rejects(tmp_path / "in") == {"0.tar/hole": sparse, "1.tar/hole": sparse}


def test_a_member_that_no_memory_should_hold_is_refused_by_its_size(tmp_path: Path) -> None:
    start = header(tarfile.TarInfo("a.flac").tobuf(), 0, size_field(b"\x80" + (10 << 30).to_bytes(11, "big")))
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(start)
        file.truncate(512 + (10 << 30))
        file.seek(0, 2)
        file.write(GOOD)
    index(str(tmp_path), headers_only=True)
    assert rows(tmp_path) == [("good", flac(9))]
    assert "10737418240 bytes, more than" in rejects(tmp_path)["a.tar/a"]


def test_names_that_are_no_utf8_are_escaped_and_their_audio_is_used(tmp_path: Path) -> None:
    latin, control = "caf\udce9.flac", "bell\x07\x1b[31m.flac"
    (tmp_path / "a.tar").write_bytes(tar([(latin, flac(1)), (control, flac(2)), ("x\udcff.txt", b"no audio")]))
    index(str(tmp_path))
    assert rows(tmp_path) == [("caf\\udce9", flac(1)), ("bell\\x07\\x1b[31m", flac(2))]
    assert list(rejects(tmp_path)) == ["a.tar/x\\udcff"]
    assert verify(str(tmp_path)) == []


def test_a_tar_whose_own_name_is_no_utf8_is_named(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.tar", "wb") as file:
        file.write(GOOD)
    (tmp_path / "b.tar").write_bytes(GOOD)
    index(str(tmp_path))
    assert rows(tmp_path) == [("good", flac(9))]
    ((name, reason),) = rejects(tmp_path).items()
    assert name == "caf\\udce9.tar" and "its name is not UTF-8. Rename it" in reason


def test_compressed_tars_are_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(GOOD)
    subprocess.run(["gzip", "-k", str(tmp_path / "b.tar")], check=True)
    (tmp_path / "c.tgz").write_bytes((tmp_path / "b.tar.gz").read_bytes())
    index(str(tmp_path))
    assert list(rejects(tmp_path)) == ["b.tar.gz", "c.tgz"]
    assert all("gunzip" in reason for reason in rejects(tmp_path).values())
    (tmp_path / "b.tar").unlink()
    with pytest.raises(InputError, match=r"no \.tar shards here, but 2 compressed.*gunzip"):
        index(str(tmp_path), replace=True)


@pytest.mark.parametrize("text", [b'{"a": "\\ud800"}', b"[" * 200_000, b"not json", b"\xff\xfe", b"9" * 5000])
def test_a_label_that_makes_no_sense_costs_the_label_and_not_the_clip(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(tar([("a.flac", flac()), ("a.json", text), ("b.flac", flac(1))]))
    index(str(tmp_path))
    assert ShardIndex.load(str(tmp_path)).samples(0)["label"].to_pylist() == [None, None]


def test_a_label_with_numbers_that_json_has_not_is_indexed_as_json(tmp_path: Path) -> None:
    text = b'{"y": NaN, "z": [1.5, -Infinity]}'
    (tmp_path / "a.tar").write_bytes(tar([("a.flac", flac()), ("a.json", text)]))
    index(str(tmp_path))
    assert ShardIndex.load(str(tmp_path)).samples(0)["label"].to_pylist() == ['{"y": null, "z": [1.5, "-inf"]}']


def test_tars_of_webdatasets_writer_are_indexed_with_their_labels(tmp_path: Path) -> None:
    with webdataset.TarWriter(f"{tmp_path}/a.tar") as out:
        for number in range(3):
            out.write(
                {
                    "__key__": f"deep/er/{number:03d}",
                    "flac": flac(number),
                    "json": {"label": number},
                    "cls": number,
                    "txt": "words",
                    "mask.npy": np.zeros(3),
                }
            )
    index(str(tmp_path))
    assert rows(tmp_path) == [(f"deep/er/{number:03d}", flac(number)) for number in range(3)]
    labels = ShardIndex.load(str(tmp_path)).samples(0)["label"].to_pylist()
    assert [json.loads(label) for label in labels] == [{"label": number} for number in range(3)]
    assert rejects(tmp_path) == {} and verify(str(tmp_path)) == []


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar on this machine")
@pytest.mark.parametrize("dialect", ["gnu", "oldgnu", "posix", "ustar", "v7"])
def test_tars_of_the_systems_tar_are_indexed_in_each_of_its_dialects(tmp_path: Path, dialect: str) -> None:
    long = {"gnu": 200, "oldgnu": 200, "posix": 200}.get(dialect, 60)
    names = ["0.first", "a/b.1/c/second", f"{'long' * 20}/{'n' * long}"[-long:], "zü/ß"]
    for number, name in enumerate(names):
        path = tmp_path / "in" / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(flac(number))
        path.with_name(path.name.replace(".flac", ".txt")).write_text("words")
    command = ["tar", f"--format={dialect}", "--sort=name", "-cf", f"{tmp_path}/a.tar", "-C", f"{tmp_path}/in", "."]
    subprocess.run(command, check=True)
    index(str(tmp_path))
    expected = {f"./{name.replace('0.first', '0')}": flac(number) for number, name in enumerate(names)}
    assert dict(rows(tmp_path)) == expected
    assert rejects(tmp_path) == {} and verify(str(tmp_path)) == []


def test_of_several_audio_members_the_preferred_format_is_used_and_members_in_any_order(tmp_path: Path) -> None:
    members = [
        ("a.mp3", b"not looked at"),
        ("a.json", b'{"n": 1}'),
        ("a.wav", b"nor this"),
        ("a.flac", flac(1)),
        ("b.txt", b"words"),
        ("b.WAV", flac(2)),
        ("b.cls", b"3"),
    ]
    (tmp_path / "a.tar").write_bytes(tar(members))
    index(str(tmp_path))
    assert rows(tmp_path) == [("a", flac(1)), ("b", flac(2))]
    assert ShardIndex.load(str(tmp_path)).samples(0)["label"].to_pylist() == ['{"n": 1}', None]
