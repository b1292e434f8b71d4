"""Building shards: every input is accepted, or rejected with its reason, whatever happens meanwhile."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from pydantic import ValidationError
from streams import bytes_of

from scaleaudio.data import storage
from scaleaudio.data.build import BuildConfig, BuildSummary, _duplicates, _units, build
from scaleaudio.data.convert import ConvertConfig, convert
from scaleaudio.data.index import ShardIndex
from scaleaudio.data.parquet import read_parquet
from scaleaudio.data.shards import verify
from scaleaudio.data.sources import list_audio
from scaleaudio.data.units import run_units
from scaleaudio.errors import DecodeError, InputError

HERE = BuildConfig(num_workers=0)


def encode(wave, rate_hz=16_000, **how):
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate_hz, **({"format": "WAV"} | how))
    return buffer.getvalue()


def noise(frames=4000, channels=1, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (frames, channels))


def put(folder, **files):
    for name, data in files.items():
        storage.write_atomic(f"{folder}/{name.replace('__', '/').replace('_dot_', '.')}", data)


def corpus(folder, num=6):
    put(folder, **{f"c{n}_dot_wav": encode(noise(seed=n)) for n in range(num)})
    return str(folder)


def rejects(out):
    return {row["path"]: row["reason"] for row in read_parquet(f"{out}/rejects.parquet").to_pylist()}


def samples(out):
    shards = ShardIndex.load(str(out))
    return [row for shard in range(len(shards.shards)) for row in shards.samples(shard).to_pylist()]


def contents(out):
    return {url.removeprefix(str(out)): storage.read_bytes(url) for url in storage.list_files(str(out))}


def test_labels_source_and_licence_travel_with_each_clip(tmp_path):
    put(tmp_path / "src", audio__a_dot_wav=encode(noise()), audio__b_dot_wav=encode(noise(seed=1)))
    table = "filename,note,empty,licence\na.wav,c4,,CC0\naudio/b.wav,d4,,\n"
    put(tmp_path / "src", labels_dot_csv=table.encode())
    build(f"{tmp_path}/src", f"{tmp_path}/out", BuildConfig(num_workers=0, licence="CC BY 4.0"))
    a, b = (json.loads(row["label"]) for row in samples(tmp_path / "out"))
    assert (a["source"], a["licence"], a["labels"]) == ("audio/a.wav", "CC0", {"note": "c4"})
    assert (b["source"], b["licence"], b["labels"]) == ("audio/b.wav", "CC BY 4.0", {"note": "d4"})


def test_stereo_of_another_rate_becomes_mono_flac_of_the_one_rate(tmp_path):
    seconds = np.arange(44_100) / 44_100
    put(tmp_path / "src", a_dot_wav=encode(np.stack([0.5 * np.sin(2 * np.pi * 500 * seconds)] * 2, 1), 44_100))
    build(f"{tmp_path}/src", f"{tmp_path}/out", HERE)
    (row,) = samples(tmp_path / "out")
    data = bytes_of(ShardIndex.load(f"{tmp_path}/out").shard_url(0), row)
    wave, rate_hz = soundfile.read(io.BytesIO(data))
    assert rate_hz == row["sample_rate_hz"] == 16_000 and wave.shape == (row["frames"],) == (16_000,)
    np.testing.assert_allclose(wave[500:-500], 0.5 * np.sin(np.pi * np.arange(16_000) / 16)[500:-500], atol=2e-3)


def test_kept_bytes_are_the_files_own(tmp_path):
    data = encode(noise(8000, 2), 22_050)
    put(tmp_path / "src", a_dot_wav=data, b_dot_wav=data[:9000])
    build(f"{tmp_path}/src", f"{tmp_path}/out", BuildConfig(num_workers=0, keep_bytes=True, piece_seconds=0.1))
    (row,) = samples(tmp_path / "out")
    assert row["member"] == "a.wav" and (row["frames"], row["sample_rate_hz"]) == (8000, 22_050)
    url = ShardIndex.load(f"{tmp_path}/out").shard_url(0)
    assert bytes_of(url, row) == data
    assert rejects(tmp_path / "out")["b.wav"].startswith("truncated")


def test_a_long_file_is_cut_into_equal_pieces_that_are_the_whole(tmp_path):
    wave = np.round(noise(50_000)[:, 0] * 32768) / 32768
    members = convert(encode(wave), ConvertConfig(piece_seconds=1.0)).members
    parts = [soundfile.read(io.BytesIO(member.data))[0] for member in members]
    assert [len(part) for part in parts] == [12_500] * 4
    assert [member.start_seconds for member in members] == [0, 0.78125, 1.5625, 2.34375]
    np.testing.assert_array_equal(np.concatenate(parts), wave)


def test_the_silent_pieces_of_a_kept_file_are_listed(tmp_path):
    put(tmp_path / "src", a_dot_wav=encode(np.concatenate([noise(16_000), np.zeros((32_000, 1))])))
    summary = build(f"{tmp_path}/src", f"{tmp_path}/out", BuildConfig(num_workers=0, piece_seconds=1.0))
    assert (summary.accepted, summary.rejected, summary.samples) == (1, 0, 1)
    assert [row["key"] for row in samples(tmp_path / "out")] == ["a@0000"]
    parts = read_parquet(f"{tmp_path}/out/rejected_parts.parquet").to_pylist()
    assert [(row["path"], row["seconds"]) for row in parts] == [("a.wav", 1.0)] * 2


@pytest.mark.parametrize(
    ("wave", "reason"),
    [
        (np.zeros(4000), "silent"),
        (np.full(4000, 0.3), "silent"),
        (noise() * [1, -1], "anti-phase"),
        (noise(100), "shorter than min_seconds"),
        (noise(64_000), "longer than max_seconds"),
        (noise(4000) * [[np.inf]], "not finite"),
    ],
)
def test_what_the_filters_refuse_has_its_reason(wave, reason):
    with pytest.raises(DecodeError, match=reason):
        convert(encode(wave, subtype="FLOAT"), ConvertConfig(max_seconds=3))


def test_audio_beyond_full_scale_is_scaled_and_says_by_how_much():
    (member,) = convert(encode(noise() * 16, subtype="FLOAT"), ConvertConfig()).members
    wave = soundfile.read(io.BytesIO(member.data))[0]
    assert member.gain == pytest.approx(1 / 8, rel=0.01)
    np.testing.assert_allclose(wave, noise()[:, 0] * 16 * member.gain, atol=1e-4)


def test_of_equal_files_the_first_is_kept(tmp_path):
    one, other = encode(noise()), encode(noise(seed=1))
    put(tmp_path / "src", z__a_dot_wav=one, b_dot_wav=one, c_dot_wav=other, e_dot_wav=b"", f_dot_wav=b"")
    build(f"{tmp_path}/src", f"{tmp_path}/out", HERE)
    assert [row["key"] for row in samples(tmp_path / "out")] == ["b", "c"]
    empty = "empty file (0 bytes)"
    assert rejects(tmp_path / "out") == {"z/a.wav": "duplicate of b.wav", "e.wav": empty, "f.wav": empty}


def test_files_that_only_begin_alike_are_no_duplicates(tmp_path):
    waves = [noise(frames=100_000) for _ in range(3)]
    waves[1][-1] = 0
    put(tmp_path / "src", **{f"c{n}_dot_wav": encode(wave) for n, wave in enumerate(waves)})
    build(f"{tmp_path}/src", f"{tmp_path}/out", HERE)
    assert [row["key"] for row in samples(tmp_path / "out")] == ["c0", "c1"]
    assert rejects(tmp_path / "out") == {"c2.wav": "duplicate of c0.wav"}


@pytest.mark.skipif(sys.platform != "linux", reason="counts the bytes read by /proc")
def test_equally_long_files_that_begin_otherwise_are_not_read_to_their_end(tmp_path):
    put(tmp_path, **{f"c{n}_dot_wav": bytes([n]) + bytes(4_000_000) for n in range(8)})
    files = list_audio(str(tmp_path), {}).files
    before = bytes_read()
    assert _duplicates(files) == {}
    assert bytes_read() - before < 2_000_000


def bytes_read():
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("rchar:"))


def test_keys_are_unique_and_without_dots(tmp_path):
    names = ["a.b_dot_wav", "a_b_dot_wav", "a__b_dot_wav", "ü x_dot_wav", "é x_dot_wav", "c_dot_flac", "c_dot_wav"]
    names.append("d" * 200 + "_dot_wav")
    put(tmp_path / "src", **{name: encode(noise(seed=n)) for n, name in enumerate(names)})
    build(f"{tmp_path}/src", f"{tmp_path}/out", HERE)
    keys = [row["key"] for row in samples(tmp_path / "out")]
    assert len(set(keys)) == len(names) and not any("." in key or len(key) > 90 for key in keys)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_list_names_its_files_and_where_chooses_among_them(tmp_path, kind):
    corpus(tmp_path / "audio", 3)
    paths = ["c0.wav", "audio/c1.wav", f"{tmp_path}/audio/c2.wav", "gone.wav", "c0.wav"]
    splits = ["train", "train", "test", "train", "train"]
    if kind == "csv":
        lines = "".join(f"{path},{split}\n" for path, split in zip(paths, splits, strict=True))
        put(tmp_path, list_dot_csv=b"path,split\n" + lines.encode())
    else:
        pq.write_table(pa.table({"path": paths, "split": splits}), tmp_path / "list.parquet")
    config = BuildConfig(num_workers=0, where={"split": "train"})
    summary = build(f"{tmp_path}/list.{kind}", f"{tmp_path}/out", config)
    assert (summary.accepted, summary.rejected, summary.left_out) == (2, 2, 1)
    assert sorted(row["key"] for row in samples(tmp_path / "out")) == ["audio_c1", "c0"]
    assert rejects(tmp_path / "out").keys() == {"gone.wav", "c0.wav"}


def test_a_small_corpus_still_gives_several_shards_and_never_one_beyond_its_bounds(tmp_path):
    src = corpus(tmp_path / "src", 20)
    assert build(src, f"{tmp_path}/a", HERE).shards == 7
    assert build(src, f"{tmp_path}/b", BuildConfig(num_workers=0, min_shards=1)).shards == 1
    build(src, f"{tmp_path}/c", BuildConfig(num_workers=0, min_shards=1, shard_bytes=30_000))
    assert max(ShardIndex.load(f"{tmp_path}/c").shards["num_bytes"].to_pylist()) < 60_000
    build(src, f"{tmp_path}/d", BuildConfig(num_workers=0, shard_samples=2))
    assert ShardIndex.load(f"{tmp_path}/d").num_samples_per_shard.tolist() == [2] * 10


def test_a_finished_build_is_left_as_it_is_and_another_is_refused(tmp_path):
    src, out = corpus(tmp_path / "src"), f"{tmp_path}/out"
    summary = build(src, out, HERE)
    before = os.stat(f"{out}/index.parquet").st_mtime_ns
    assert build(src, out, HERE) == summary and os.stat(f"{out}/index.parquet").st_mtime_ns == before
    with pytest.raises(InputError, match=r"other settings \(min_seconds, shard_samples\).*--fresh"):
        build(src, out, BuildConfig(num_workers=0, min_seconds=0.2, shard_samples=3))
    put(src, more_dot_wav=encode(noise(seed=99)))
    with pytest.raises(InputError, match="other files"):
        build(src, out, HERE)
    mine = tmp_path / "out" / "samples" / "mine.flac"
    mine.write_bytes(b"not of a build")
    assert build(src, out, HERE, fresh=True).samples == 7
    assert mine.read_bytes() == b"not of a build"
    assert verify(out) == []


def test_a_finished_build_that_lost_tars_says_so(tmp_path):
    src, out = corpus(tmp_path / "src"), f"{tmp_path}/out"
    build(src, out, HERE)
    os.unlink(f"{out}/shard-000001-00.tar")
    with pytest.raises(InputError, match=r"1 of its \d+ tars are gone.*--fresh"):
        build(src, out, HERE)
    assert build(src, out, HERE, fresh=True).samples == 6 and verify(out) == []


def test_units_that_lost_tars_before_the_build_was_finished_are_built_again(tmp_path):
    out = f"{tmp_path}/out"
    units = _units(out, list_audio(corpus(tmp_path / "src"), {}).files, HERE)
    results = run_units(units, 0, lambda unit: None)
    whole, kept = contents(out), os.stat(f"{out}/shard-000000-00.tar").st_mtime_ns
    os.unlink(f"{out}/shard-000001-00.tar")
    os.unlink(f"{out}/samples/shard-000002-00.parquet")
    assert run_units(units, 0, lambda unit: None) == results
    assert contents(out) == whole and os.stat(f"{out}/shard-000000-00.tar").st_mtime_ns == kept


def test_a_build_into_its_own_source_is_the_same_build_however_it_is_spelt(tmp_path, monkeypatch):
    src = corpus(tmp_path / "src")
    monkeypatch.chdir(src)
    done = build(".", "out", HERE)
    assert done.accepted == 6 and done.rejected == 0
    for src, out in [(".", "./out/"), (".", f"{tmp_path}/src/out"), ("../src", "out"), (str(tmp_path / "src"), "out")]:
        assert build(src, out, HERE) == done


def test_labels_that_are_no_number_are_left_out_and_every_label_is_json(tmp_path):
    put(tmp_path / "src", a_dot_wav=encode(noise()), b_dot_wav=encode(noise(seed=1)))
    table = pa.table({"path": ["a.wav", "b.wav"], "y": [math.nan, -math.inf], "z": [1.5, math.nan]})
    pq.write_table(table, tmp_path / "src" / "list.parquet")
    build(f"{tmp_path}/src/list.parquet", f"{tmp_path}/out", HERE)
    read = [json.loads(row["label"], parse_constant=pytest.fail)["labels"] for row in samples(tmp_path / "out")]
    assert read == [{"z": 1.5}, {"y": "-inf"}]


@pytest.mark.parametrize(
    "setting",
    [
        {"piece_seconds": math.inf},
        {"piece_seconds": 1e300},
        {"max_seconds": math.inf},
        {"min_seconds": math.nan},
        {"file_timeout_seconds": 99_999_999_999},
    ],
)
def test_endless_settings_are_refused_by_name(setting):
    with pytest.raises(ValidationError, match=r"less than or equal|finite number") as refusal:
        BuildConfig(**setting)
    assert refusal.value.errors()[0]["loc"] == tuple(setting)


def test_a_full_disk_is_named_with_the_file(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("needs leave to mount a small disk")
    try:
        with pytest.raises(OSError, match=r"No space left on device: '.*/disk/out/.*shard-000000-00"):
            build(corpus(tmp_path / "src", 20), f"{disk}/out", BuildConfig(num_workers=0, min_shards=1))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_nothing_usable_is_one_clear_error_and_the_reasons_are_on_disk(tmp_path):
    put(tmp_path / "src", a_dot_wav=b"words", b_dot_flac=b"")
    with pytest.raises(InputError, match="none of 2 files could be used"):
        build(f"{tmp_path}/src", f"{tmp_path}/out", HERE)
    assert rejects(tmp_path / "out").keys() == {"a.wav", "b.flac"}


@pytest.mark.parametrize(
    ("src", "where", "message"),
    [
        ("none", {}, "no such file or folder"),
        ("empty", {}, "no audio files"),
        ("bad.csv", {}, "expected a column `path` or `filename`, found a, b"),
        ("src", {"split": "train"}, "where split=train"),
        ("src/c0.wav", {}, "expected a folder"),
        ("pipe:ls", {}, "pipe:"),
    ],
)
def test_wrong_sources_are_refused(tmp_path, src, where, message):
    (tmp_path / "empty").mkdir()
    corpus(tmp_path / "src", 1)
    put(tmp_path, bad_dot_csv=b"a,b\n1,2\n")
    with pytest.raises(InputError, match=message):
        build(src if ":" in src else f"{tmp_path}/{src}", f"{tmp_path}/out", BuildConfig(num_workers=0, where=where))


def test_a_folder_that_holds_other_tables_is_not_built_into(tmp_path):
    put(tmp_path / "out", precious_dot_parquet=b"x")
    with pytest.raises(InputError, match="that no build made"):
        build(corpus(tmp_path / "src", 1), f"{tmp_path}/out", HERE)


BUILD_SCRIPT = """
import sys
from scaleaudio.data.build import BuildConfig, build
from scaleaudio.data import units

def die_at_hostile(unit):
    for _, file in unit.files:
        if "hostile" in file.name and file.name not in unit.fatal:
            with units._watched(unit, file):
                units.os.kill(units.os.getpid(), 9)
    return build_unit(unit)

build_unit = units.build_unit
if __name__ == "__main__":
    units.build_unit = die_at_hostile
    print(build(sys.argv[1], sys.argv[2], BuildConfig(num_workers=2)))
"""


def run_script(tmp_path, *arguments):
    (tmp_path / "run.py").write_text(BUILD_SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, f"{tmp_path}/run.py", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_a_file_that_crashes_its_process_is_rejected_and_the_rest_is_as_if_built_here(tmp_path):
    src = corpus(tmp_path / "src", 20)
    build(src, f"{tmp_path}/here", HERE)
    put(src, c9hostile_dot_wav=encode(noise(seed=50)))
    with run_script(tmp_path, src, f"{tmp_path}/out") as process:
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "accepted=20, rejected=1" in printed
    ((name, reason),) = rejects(tmp_path / "out").items()
    assert name == "c9hostile.wav" and "crashed" in reason
    drop = {"offset"}
    clean = [{k: v for k, v in row.items() if k not in drop} for row in samples(tmp_path / "here")]
    assert [{k: v for k, v in row.items() if k not in drop} for row in samples(tmp_path / "out")] == clean


def test_a_build_killed_midway_goes_on_and_ends_bit_for_bit_the_same(tmp_path):
    src = corpus(tmp_path / "src", 400)
    build(src, f"{tmp_path}/whole", HERE)
    with run_script(tmp_path, src, f"{tmp_path}/out") as process:
        work = tmp_path / "out" / ".build"
        while not (done := sorted(work.glob("unit-*.json"))) and process.poll() is None:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    if not (tmp_path / "out" / "index.parquet").exists():
        first = tmp_path / "out" / f"shard-{done[0].stem.removeprefix('unit-')}-00.tar"
        before = first.stat().st_mtime_ns
        summary = build(src, f"{tmp_path}/out", HERE)
        assert first.stat().st_mtime_ns == before and isinstance(summary, BuildSummary)
    assert contents(f"{tmp_path}/out") == contents(f"{tmp_path}/whole")
