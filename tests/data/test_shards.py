"""Shards are plain WebDataset tars, found again by their index; damage has a name."""

import io
import json
import re
import tarfile

import numpy as np
import pytest
import soundfile
from streams import bytes_of

from scaleaudio.data import storage
from scaleaudio.data.convert import Member
from scaleaudio.data.index import INDEX_NAME, REJECTS_NAME, SAMPLE_SCHEMA, SHARD_SCHEMA, ShardIndex
from scaleaudio.data.parquet import read_parquet, write_table
from scaleaudio.data.scan import index
from scaleaudio.data.shards import ShardWriter, verify
from scaleaudio.errors import InputError


def flac(frames=2000, seed=0):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(seed).uniform(-0.5, 0.5, frames), 16_000, format="FLAC")
    return buffer.getvalue()


def write_shards(folder, num=7, **limits):
    limits = {"shard_bytes": 1 << 20, "shard_samples": 3} | limits
    with ShardWriter(str(folder), "shard-000000", **limits) as writer:
        for number in range(num):
            member = Member("flac", flac(2000 + number, number), 2000 + number, 16_000, 0.0)
            writer.add(f"clip{number}", member, {"labels": {"n": number}})
    write_table(f"{folder}/{INDEX_NAME}", writer.shards, SHARD_SCHEMA)
    return ShardIndex.load(str(folder))


def write_tar(path, members, *, tail=b""):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(path.read_bytes() + tail)


def test_each_row_of_the_index_is_one_ranged_read_of_its_clip(tmp_path):
    shards = write_shards(tmp_path)
    assert shards.num_samples_per_shard.tolist() == [3, 3, 1]
    keys = []
    for shard in range(3):
        for row in shards.samples(shard).to_pylist():
            data = bytes_of(shards.shard_url(shard), row)
            number = len(keys)
            assert data == flac(2000 + number, number) and row["frames"] == soundfile.info(io.BytesIO(data)).frames
            assert json.loads(row["label"]) == {"labels": {"n": number}}
            keys.append(row["key"])
    assert keys == [f"clip{n}" for n in range(7)]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the tar to the garbage collector
def test_webdataset_reads_the_shards(tmp_path):
    import webdataset as wds

    shards = write_shards(tmp_path)
    urls = [shards.shard_url(shard) for shard in range(3)]
    samples = list(wds.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"clip{n}" for n in range(7)]
    assert samples[2]["flac"] == flac(2002, 2) and json.loads(samples[2]["json"]) == {"labels": {"n": 2}}


def test_a_shard_is_closed_when_it_is_large_enough(tmp_path):
    shards = write_shards(tmp_path, shard_bytes=10_240, shard_samples=100)
    assert len(shards.shards) > 1
    assert max(shards.shards["num_bytes"].to_pylist()) < 10_240 + 3 * 10_240


def test_an_interrupted_shard_is_not_there(tmp_path):
    def interrupted():
        with ShardWriter(str(tmp_path), "s", shard_bytes=1 << 20, shard_samples=9) as writer:
            writer.add("a", Member("flac", flac(), 2000, 16_000, 0.0), {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert storage.list_files(str(tmp_path)) == []


def test_whole_shards_verify_clean(tmp_path):
    write_shards(tmp_path)
    assert verify(str(tmp_path)) == []


def test_verify_names_the_shard_and_the_member_of_each_damage(tmp_path):
    shards = write_shards(tmp_path)
    row = shards.samples(0).to_pylist()[1]
    first, second, third = (tmp_path / f"shard-000000-0{n}.tar" for n in range(3))
    data = bytearray(first.read_bytes())
    data[row["offset"] + 100] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:7000])
    third.unlink()
    (tmp_path / "other.tar").write_bytes(b"")
    found = {(damage.shard, damage.member): damage.reason for damage in verify(str(tmp_path))}
    assert "differ" in found["shard-000000-00.tar", "clip1.flac"]
    assert "expected 20480 bytes, found 7000" in found["shard-000000-01.tar", ""]
    assert "cut off" in found["shard-000000-01.tar", "clip5.flac"]
    assert found["shard-000000-02.tar", ""] == "missing"
    assert "not in index" in found["other.tar", ""]
    assert len([key for key in found if key[0] == "shard-000000-00.tar"]) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: row | {"offset": row["offset"] + 7}, "do not lie where the index says"),
        (lambda row: row | {"size": row["size"] - 1}, "do not lie where the index says"),
        (lambda row: row | {"frames": 1}, "indexed with 1 frames at 16000 Hz, but it has 200[345] at 16000 Hz"),
        (lambda row: row | {"frames": 1 << 31}, "indexed with 2147483648 frames"),
        (lambda row: row | {"frames": 1 << 62}, "indexed with 4611686018427387904 frames"),
        (lambda row: row | {"sample_rate_hz": 8000}, "at 8000 Hz, but it has"),
    ],
)
def test_verify_sees_a_sample_table_that_is_wrong_about_a_whole_tar(tmp_path, change, reason):
    shards = write_shards(tmp_path)
    table = f"{tmp_path}/{shards.row(1).samples}"
    write_table(table, [change(row) for row in shards.samples(1).to_pylist()], SAMPLE_SCHEMA)
    damages = verify(shards.url)
    assert [(damage.shard, damage.member) for damage in damages] == [
        ("shard-000000-01.tar", f"clip{number}.flac") for number in (3, 4, 5)
    ]
    assert all(re.search(reason, damage.reason) for damage in damages)


def test_verify_sees_a_row_that_stands_in_for_all_others(tmp_path):
    shards = write_shards(tmp_path)
    write_table(f"{tmp_path}/{shards.row(0).samples}", shards.samples(0).to_pylist()[:1] * 3, SAMPLE_SCHEMA)
    (damage,) = verify(shards.url)
    assert damage.shard == "shard-000000-00.tar" and "two rows have the same offset" in damage.reason


def test_verify_sees_damage_outside_the_audio(tmp_path):
    shards = write_shards(tmp_path)
    path = tmp_path / "shard-000000-02.tar"
    data = bytearray(path.read_bytes())
    data[3] ^= 1  # in the first member's name
    path.write_bytes(data)
    (damage,) = verify(shards.url)
    assert damage.shard == path.name and "outside the audio members" in damage.reason


def test_indexing_our_own_tars_gives_the_index_that_building_gave(tmp_path):
    shards = write_shards(tmp_path / "shards")
    index(f"{tmp_path}/shards", out=f"{tmp_path}/index")
    again = ShardIndex.load(f"{tmp_path}/index")
    for shard in range(3):
        assert again.samples(shard).equals(shards.samples(shard))
        assert again.shard_url(shard) == shards.shard_url(shard)
    for column in ("num_samples", "num_bytes", "seconds", "checksum"):
        assert again.shards[column].equals(shards.shards[column])
    assert verify(again.url) == []


def test_foreign_tars_are_indexed_as_webdataset_groups_them(tmp_path):
    audio = flac()
    write_tar(
        tmp_path / "a.tar",
        [
            ("train/x.1/a.txt", b"words"),
            ("train/x.1/a.left.wav", b"not this one: flac is preferred"),
            ("train/x.1/a.flac", audio),
            ("train/x.1/a.json", b'{"label": 3}'),
            ("b.txt", b"a sample without audio"),
            ("c.flac", b"no audio"),
            ("d" * 150 + ".flac", audio),
            ("train/x.1/a.flac", audio),
        ],
    )
    summary = index(str(tmp_path))
    rows = ShardIndex.load(str(tmp_path)).samples(0).to_pylist()
    assert [row["key"] for row in rows] == ["train/x.1/a", "d" * 150]
    assert [row["frames"] for row in rows] == [2000, 2000] and json.loads(rows[0]["label"]) == {"label": 3}
    for row in rows:
        assert bytes_of(f"{tmp_path}/a.tar", row) == audio
    assert [reason.split()[0] for _, reason in summary.rejects] == ["no", "not", "key"]
    assert read_parquet(f"{tmp_path}/{REJECTS_NAME}")["path"].to_pylist() == ["a.tar/b", "a.tar/c", "a.tar/train/x.1/a"]


@pytest.mark.parametrize("damage", ["header", "torn", "boundary", "garbage"])
def test_a_damaged_foreign_tar_is_rejected_by_name_and_the_rest_indexed(tmp_path, damage):
    members = [(f"{n}.flac", flac(seed=n)) for n in range(4)]
    write_tar(tmp_path / "good.tar", members)
    write_tar(tmp_path / "bad.tar", members)
    with tarfile.open(tmp_path / "bad.tar") as tar:
        third = tar.getmembers()[2]
    data = bytearray((tmp_path / "bad.tar").read_bytes())
    if damage == "header":
        data[third.offset : third.offset + 512] = b"\x55" * 512
    elif damage == "torn":
        del data[third.offset_data + 100 :]
    elif damage == "boundary":
        del data[third.offset :]
    else:
        data += b"x" * 1024
    (tmp_path / "bad.tar").write_bytes(data)
    summary = index(str(tmp_path))
    assert summary.shards == 1 and summary.samples == 4
    ((name, reason),) = summary.rejects
    assert name == "bad.tar" and reason.startswith("damaged tar")


def test_headers_only_leaves_out_what_needs_the_bytes_and_verify_checks_the_sizes(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.flac", flac()), ("a.json", b"{}")])
    index(str(tmp_path), headers_only=True)
    shards = ShardIndex.load(str(tmp_path))
    (row,) = shards.samples(0).to_pylist()
    assert row["offset"] == 512 and row["frames"] is None and row["checksum"] is None
    assert verify(str(tmp_path)) == []
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:1024])
    assert {damage.member for damage in verify(str(tmp_path))} == {"", "a.flac"}


def test_indexing_refuses_pipes_folders_without_tars_and_to_overwrite(tmp_path):
    with pytest.raises(InputError, match="pipe:"):
        index("pipe:cat a.tar")
    with pytest.raises(InputError, match=r"no \.tar shards"):
        index(str(tmp_path))
    write_tar(tmp_path / "a.tar", [("a.flac", flac())])
    index(str(tmp_path))
    with pytest.raises(InputError, match="already"):
        index(str(tmp_path))
