"""The index on disk: what it says, and what it says when it is not there."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaleaudio.data import storage
from scaleaudio.data.index import INDEX_NAME, SAMPLE_SCHEMA, SHARD_SCHEMA, ShardIndex
from scaleaudio.data.parquet import write_table
from scaleaudio.errors import InputError


def sample(key, offset=512):
    return {"key": key, "member": f"{key}.flac", "offset": offset, "size": 9, "frames": 8, "sample_rate_hz": 16_000}


def shard(name, num_samples, checksum="aa"):
    return {
        "shard": f"{name}.tar",
        "num_samples": num_samples,
        "num_bytes": 10_240,
        "seconds": 1.5,
        "checksum": checksum,
        "samples": f"samples/{name}.parquet",
    }


@pytest.fixture
def folder(tmp_path):
    for name, keys in (("a", ["x", "y"]), ("b", ["z"])):
        rows = [sample(key, 512 + 2048 * number) for number, key in enumerate(keys)]
        write_table(f"{tmp_path}/samples/{name}.parquet", rows, SAMPLE_SCHEMA)
    write_table(f"{tmp_path}/{INDEX_NAME}", [shard("a", 2), shard("b", 1)], SHARD_SCHEMA)
    return str(tmp_path)


def test_the_index_reads_back_what_was_written(folder):
    index = ShardIndex.load(folder)
    assert index.num_samples == 3 and index.num_samples_per_shard.tolist() == [2, 1] and index.seconds == 3.0
    assert index.shard_url(1) == f"{folder}/b.tar"
    assert index.samples(0)["key"].to_pylist() == ["x", "y"]
    assert ShardIndex.load(f"{folder}/{INDEX_NAME}").url == folder


def test_the_fingerprint_changes_with_any_checksum_and_with_nothing_else(folder):
    before = ShardIndex.load(folder).fingerprint
    assert ShardIndex.load(folder + "/").fingerprint == before
    write_table(f"{folder}/{INDEX_NAME}", [shard("a", 2), shard("b", 1, "bb")], SHARD_SCHEMA)
    assert ShardIndex.load(folder).fingerprint != before


def test_names_are_found_however_the_table_was_cut_into_row_groups(tmp_path):
    rows = [shard(f"s{number}", number + 1) for number in range(3000)]
    table = pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)
    pq.write_table(table, tmp_path / INDEX_NAME, row_group_size=1300)
    index = ShardIndex.load(str(tmp_path))
    assert [index.row(row).shard for row in range(3000)] == [f"s{number}.tar" for number in range(3000)]
    assert index.num_samples_per_shard.tolist() == list(range(1, 3001)) and index.num_samples == 4_501_500
    assert index.shards.equals(table)


def test_a_shard_that_two_rows_name_is_refused_however_far_apart_they_are(tmp_path):
    rows = [shard(f"s{number}", 1) for number in range(3000)]
    write_table(f"{tmp_path}/{INDEX_NAME}", [*rows, rows[7]], SHARD_SCHEMA)
    with pytest.raises(InputError, match=r"2 rows name the shard s7\.tar"):
        ShardIndex.load(str(tmp_path))


def test_a_sample_table_with_a_row_twice_is_refused(folder):
    write_table(f"{folder}/samples/a.parquet", [sample("x"), sample("x")], SAMPLE_SCHEMA)
    with pytest.raises(InputError, match="two rows have the same offset"):
        ShardIndex.load(folder).samples(0)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"shard": "https://user:hunter2@host/a.tar"}, "holds a password"),
        ({"shard": "https://host/a.tar?X-Amz-Signature=hunter2"}, "X-Amz-Signature"),
        ({"shard": "pipe:cat hunter2"}, "pipe: address"),
        ({"shard": "PIPE:cat hunter2"}, "pipe: address"),
        ({"shard": ""}, "names no shard"),
        ({"samples": "https://user:hunter2@host/a.parquet"}, "sample table is a URL"),
    ],
)
def test_a_shard_with_a_credential_a_shell_or_no_name_is_refused_by_its_row_alone(tmp_path, row, reason):
    rows = [shard(f"s{number}", 1) for number in range(2000)]
    rows[1500] |= row
    write_table(f"{tmp_path}/{INDEX_NAME}", rows, SHARD_SCHEMA)
    with pytest.raises(InputError, match=reason) as caught:
        ShardIndex.load(str(tmp_path))
    assert "row 1500" in str(caught.value) and "hunter2" not in str(caught.value)


def test_an_index_that_is_replaced_while_it_is_in_use_has_no_fingerprint(folder):
    index = ShardIndex.load(folder)
    write_table(f"{folder}/{INDEX_NAME}", [shard("a", 2), shard("c", 1)], SHARD_SCHEMA)
    with pytest.raises(InputError, match=r"index\.parquet was replaced while it was in use"):
        assert index.fingerprint


def test_the_fingerprint_is_the_one_that_saved_checkpoints_hold(folder):
    # Of this very index, by the first version of the format.
    assert ShardIndex.load(folder).fingerprint == "86179749b83b3026a613d190b95fdc0a7d7d76b05b7af439d4ee1d8d5aa960c0"


def test_a_folder_without_index_names_the_command_that_makes_it(tmp_path):
    storage.write_atomic(f"{tmp_path}/clips/a.wav", b"x")
    storage.write_atomic(f"{tmp_path}/tars/a.tar", b"x")
    with pytest.raises(InputError, match=r'data\.url ".*clips": no index\.parquet here.*shards build'):
        ShardIndex.load(f"{tmp_path}/clips")
    with pytest.raises(InputError, match="shards index"):
        ShardIndex.load(f"{tmp_path}/tars")
    with pytest.raises(InputError, match="no such folder"):
        ShardIndex.load(f"{tmp_path}/none")


@pytest.mark.parametrize("data", [b"", b"not parquet", b"PAR1xxxxPAR1"])
def test_a_broken_index_is_one_clear_error(tmp_path, data):
    storage.write_atomic(f"{tmp_path}/{INDEX_NAME}", data)
    with pytest.raises(InputError, match=r"index\.parquet: not a table of the expected form"):
        ShardIndex.load(str(tmp_path))


def test_a_sample_table_that_disagrees_with_the_index_is_refused(folder):
    write_table(f"{folder}/samples/a.parquet", [sample("x")], SAMPLE_SCHEMA)
    with pytest.raises(InputError, match="says 2 samples, the table has 1"):
        ShardIndex.load(folder).samples(0)
    storage.delete_tree(f"{folder}/samples/b.parquet")
    with pytest.raises(InputError, match="missing"):
        ShardIndex.load(folder).samples(1)
