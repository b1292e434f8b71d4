"""Each recipe on a miniature of the official layout, unpacked and packed: the official splits, and nothing copied."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from archives import lay_out, pack

from scaleaudio.data.sources import list_audio
from scaleaudio.evaluate.split import plan_task
from scaleaudio.evaluate.tasks import Task, read_labels
from scaleaudio.recipes import RECIPES, make


@dataclass(frozen=True)
class Mini:
    """A miniature: its clips and tables, its archives (name -> folders inside), and rows that must come out."""

    clips: tuple[str, ...]
    texts: dict[str, str] = field(default_factory=dict)
    archives: dict[str, tuple[str, ...]] = field(default_factory=dict)
    loose: tuple[str, ...] = ()
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


ESC50 = "ESC-50-master"
ESC50_TABLE = """filename,fold,target,category,esc10,src_file,take
1-100032-A-0.wav,1,0,dog,True,100032,A
1-17092-A-27.wav,1,27,brushing_teeth,False,17092,A
2-114280-A-0.wav,2,0,dog,True,114280,A
2-117271-A-0.wav,2,27,brushing_teeth,False,117271,A
"""
US8K_TABLE = """slice_file_name,fsID,start,end,salience,fold,classID,class
101415-3-0-2.wav,101415,1.0,5.0,1,1,3,dog_bark
7061-6-0-0.wav,7061,0.0,1.2,2,2,6,gun_shot
102305-6-0-0.wav,102305,0.0,2.6,1,1,6,gun_shot
344-3-0-0.wav,344,0.0,2.6,1,2,3,dog_bark
"""
NSYNTH_NOTES = {"bass_electronic_018-022-025": ("bass", 22), "flute_acoustic_002-077-100": ("flute", 77)}


def nsynth_table() -> str:
    notes = {
        key: {
            "note_str": key,
            "instrument_str": key.rpartition("-")[0].rpartition("-")[0],
            "instrument_family_str": family,
            "instrument_source_str": key.split("_")[1],
            "pitch": pitch,
            "velocity": int(key.rpartition("-")[2]),
        }
        for key, (family, pitch) in NSYNTH_NOTES.items()
    }
    return json.dumps(notes)


SEGMENTS = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids={0}, num_segs={0}, num_unique_labels=527, num_positive_labels=52882
# YTID, start_seconds, end_seconds, positive_labels
"""

MINIS: dict[str, Mini] = {
    "esc50": Mini(
        tuple(f"{ESC50}/audio/{line.partition(',')[0]}" for line in ESC50_TABLE.splitlines()[1:]),
        {f"{ESC50}/meta/esc50.csv": ESC50_TABLE, f"{ESC50}/README.md": "ESC-50"},
        {"ESC-50-master.zip": ()},
        rows={
            f"{ESC50}/audio/1-100032-A-0.wav": {"label": "dog", "fold": "1", "group": "100032", "esc10": "dog"},
            f"{ESC50}/audio/1-17092-A-27.wav": {"label": "brushing_teeth", "esc10": ""},
        },
    ),
    "urbansound8k": Mini(
        tuple(
            f"UrbanSound8K/audio/fold{line.split(',')[5]}/{line.split(',')[0]}" for line in US8K_TABLE.splitlines()[1:]
        ),
        {"UrbanSound8K/metadata/UrbanSound8K.csv": US8K_TABLE, "UrbanSound8K/FREESOUNDCREDITS.txt": "credits"},
        {"UrbanSound8K.tar.gz": ()},
        rows={
            "UrbanSound8K/audio/fold1/101415-3-0-2.wav": {"label": "dog_bark", "fold": "1", "group": "101415"},
            "UrbanSound8K/audio/fold2/7061-6-0-0.wav": {"label": "gun_shot", "fold": "2", "group": "7061"},
        },
    ),
    "speechcommands": Mini(
        (
            "yes/0a7c2a8d_nohash_0.wav",
            "yes/00f0204f_nohash_0.wav",
            "yes/0ab3b47d_nohash_1.wav",
            "cat/0a7c2a8d_nohash_0.wav",
            "cat/004ae714_nohash_0.wav",
            "_background_noise_/pink_noise.wav",
        ),
        {
            "testing_list.txt": "yes/0a7c2a8d_nohash_0.wav\ncat/0a7c2a8d_nohash_0.wav\n",
            "validation_list.txt": "yes/0ab3b47d_nohash_1.wav\n",
            "_background_noise_/README.md": "noise",
        },
        {"speech_commands_v0.02.tar.gz": ()},
        rows={
            "yes/0a7c2a8d_nohash_0.wav": {"label": "yes", "split": "test", "group": "0a7c2a8d", "command": "yes"},
            "yes/0ab3b47d_nohash_1.wav": {"split": "val"},
            "cat/004ae714_nohash_0.wav": {"label": "cat", "split": "train", "command": "unknown"},
        },
        left_out=("_background_noise_/pink_noise.wav",),
    ),
    "nsynth": Mini(
        tuple(f"nsynth-{part}/audio/{key}.wav" for part in ("train", "valid", "test") for key in NSYNTH_NOTES),
        {f"nsynth-{part}/examples.json": nsynth_table() for part in ("train", "valid", "test")},
        {f"nsynth-{part}.jsonwav.tar.gz": (f"nsynth-{part}",) for part in ("train", "valid", "test")},
        rows={
            "nsynth-valid/audio/flute_acoustic_002-077-100.wav": {
                "label": "flute",
                "split": "val",
                "group": "flute_acoustic_002",
                "pitch": "77",
                "velocity": "100",
                "source": "acoustic",
            },
            "nsynth-test/audio/bass_electronic_018-022-025.wav": {"label": "bass", "split": "test", "pitch": "22"},
        },
    ),
    "voxceleb1": Mini(
        (
            "wav/id10001/1zcIwhmdeo4/00001.wav",
            "wav/id10001/7gWzIy6yIIk/00001.wav",
            "wav/id10002/0_laIeN-Q44/00001.wav",
            "wav/id10270/5r0dWxy17C8/00001.wav",
        ),
        {
            "iden_split.txt": "1 id10001/1zcIwhmdeo4/00001.wav\n3 id10001/7gWzIy6yIIk/00001.wav\n"
            "1 id10002/0_laIeN-Q44/00001.wav\n2 id10270/5r0dWxy17C8/00001.wav\n"
        },
        {"vox1_dev_wav.zip": ("wav/id10001", "wav/id10002"), "vox1_test_wav.zip": ("wav/id10270",)},
        loose=("iden_split.txt",),
        rows={
            "wav/id10001/7gWzIy6yIIk/00001.wav": {"label": "id10001", "split": "test", "group": "id10001/7gWzIy6yIIk"},
            "wav/id10270/5r0dWxy17C8/00001.wav": {"label": "id10270", "split": "val"},
        },
    ),
    "voxforge": Mini(
        tuple(
            f"{language}/user{user}-2009{user:04d}-abc/{kind}/{language}-{number}.{kind}"
            for language, kind in (("de", "wav"), ("ru", "flac"))
            for user in range(4)
            for number in range(2)
        ),
        {"de/user0-20090000-abc/etc/PROMPTS": "de-0 HALLO"},
        {
            f"{language}/user{user}-2009{user:04d}-abc.tgz": (f"user{user}-2009{user:04d}-abc",)
            for language in ("de", "ru")
            for user in range(4)
        },
        rows={"de/user0-20090000-abc/wav/de-0.wav": {"label": "de", "group": "de/user0"}},
    ),
    "cremad": Mini(
        tuple(
            f"AudioWAV/{name}.wav"
            for name in ("1001_DFA_ANG_XX", "1001_IEO_HAP_LO", "1015_IEO_HAP_HI", "1040_ITH_SAD_X", "1040_IEO_ANG_LO")
        ),
        {"README.md": "CREMA-D"},
        {"CREMA-D-master.zip": ()},
        rows={
            "AudioWAV/1001_DFA_ANG_XX.wav": {"label": "anger", "split": "train", "group": "1001", "sentence": "DFA"},
            "AudioWAV/1015_IEO_HAP_HI.wav": {"label": "happy", "split": "val", "group": "1015"},
            "AudioWAV/1040_ITH_SAD_X.wav": {"label": "sad", "split": "test", "group": "1040"},
        },
    ),
    "gtzan": Mini(
        tuple(
            f"genres/{name.partition('.')[0]}/{name}.au"
            for name in ("blues.00000", "blues.00012", "blues.00029", "rock.00001", "rock.00010")
        ),
        {"genres/bextract_single.mf": "blues/blues.00029.au"},
        {"genres.tar.gz": ()},
        rows={"genres/blues/blues.00029.au": {"label": "blues", "split": "train"}},
    ),
    "surge": Mini(
        tuple(f"surge/preset {preset}/{note}.ogg" for preset in range(8) for note in (21, 108)),
        {},
        {"surge.tar": ()},
        rows={"surge/preset 3/21.ogg": {"label": "21", "group": "preset 3"}},
    ),
    "fsd50k": Mini(
        ("FSD50K.dev_audio/64760.wav", "FSD50K.dev_audio/16399.wav", "FSD50K.eval_audio/37199.wav"),
        {
            "FSD50K.ground_truth/dev.csv": "fname,labels,mids,split\n"
            '64760,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf",train\n'
            "16399,Bark,/m/05tny_,val\n",
            "FSD50K.ground_truth/eval.csv": 'fname,labels,mids\n37199,"Bark,Dog","/m/05tny_,/m/0bt9lr"\n',
            "FSD50K.ground_truth/vocabulary.csv": "0,Accelerating_and_revving_and_vroom,/m/07q2z82\n",
            "FSD50K.metadata/dev_clips_info_FSD50K.json": '{"64760": {"title": "g", "uploader": "someone"}}',
        },
        {f"FSD50K.{part}.zip": (f"FSD50K.{part}",) for part in ("dev_audio", "eval_audio", "ground_truth", "metadata")},
        rows={
            "FSD50K.dev_audio/64760.wav": {
                "label": "Electric_guitar;Guitar;Music",
                "split": "train",
                "group": "someone",
            },
            "FSD50K.dev_audio/16399.wav": {"label": "Bark", "split": "val", "group": ""},
            "FSD50K.eval_audio/37199.wav": {"label": "Bark;Dog", "split": "test"},
        },
    ),
    "audioset": Mini(
        ("eval/-0RWZT-miFs.flac", "bal/Y--PJHxphWEs.wav", "bal/YcUhZPLrqwE_30.000_40.000.wav", "more/_bal0_train.wav"),
        {
            "balanced_train_segments.csv": SEGMENTS.format(2)
            + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\nYcUhZPLrqwE, 30.000, 40.000, "/m/0k4j"\n',
            "eval_segments.csv": SEGMENTS.format(1) + '-0RWZT-miFs, 420.000, 430.000, "/m/03v3yw,/m/0k4j"\n',
            "class_labels_indices.csv": 'index,mid,display_name\n0,/m/09x0r,"Speech, of a man"\n'
            "1,/t/dd00088,Gush\n2,/m/0k4j,Car\n3,/m/03v3yw,Keys jangling\n",
        },
        {"bal_train00.tar": ("bal",), "eval00.tar": ("eval",)},
        loose=("balanced_train_segments.csv", "eval_segments.csv", "class_labels_indices.csv"),
        rows={
            "bal/Y--PJHxphWEs.wav": {
                "label": "Speech, of a man;Gush",
                "split": "train",
                "group": "--PJHxphWEs",
                "subset": "balanced_train",
            },
            "bal/YcUhZPLrqwE_30.000_40.000.wav": {"label": "Car", "group": "YcUhZPLrqwE"},
            "eval/-0RWZT-miFs.flac": {"label": "Keys jangling;Car", "split": "test", "subset": "eval"},
        },
        left_out=("more/_bal0_train.wav",),
    ),
    "librispeech": Mini(
        (
            "LibriSpeech/dev-clean/84/121123/84-121123-0000.flac",
            "LibriSpeech/train-clean-100/19/198/19-198-0000.flac",
            "LibriSpeech/test-other/367/130732/367-130732-0000.flac",
        ),
        {
            "LibriSpeech/SPEAKERS.TXT": "; some pipes\n;ID  |SEX| SUBSET |MINUTES| NAME\n"
            "19   | F | train-clean-100  | 25.19 | Kara Shallenberg\n84 | F | dev-clean | 8.02 | Christie Nowak\n"
            "367 | M | test-other | 8.01 | Mark Nelson\n"
        },
        {f"{subset}.tar.gz": ("LibriSpeech",) for subset in ("dev-clean", "train-clean-100")},
        rows={
            "LibriSpeech/dev-clean/84/121123/84-121123-0000.flac": {
                "split": "val",
                "group": "84",
                "subset": "dev-clean",
                "sex": "F",
            },
            "LibriSpeech/test-other/367/130732/367-130732-0000.flac": {"split": "test", "sex": "M"},
        },
    ),
}


def test_every_recipe_has_a_miniature() -> None:
    assert MINIS.keys() == RECIPES.keys()


def packed(mini: Mini, folder: Path, downloads: Path) -> Path:
    """The miniature's archives and loose tables, as they are downloaded."""
    for archive, below in mini.archives.items():
        inside = Path(archive).parent  # VoxForge's archives know nothing of the folder of their language
        pack(folder / inside, downloads / archive, *below)
    for name in mini.loose:
        (downloads / name).write_text((folder / name).read_text())
    return downloads


def read(out: Path) -> dict[str, dict[str, str]]:
    with (out / "labels.csv").open(newline="") as file:
        return {row.pop("filename"): row for row in csv.DictReader(file)}


def check(name: str, mini: Mini, out: Path) -> None:
    rows = read(out)
    assert {f"audio/{name}" for name in mini.clips} - {f"audio/{name}" for name in mini.left_out} == rows.keys()
    for file, cells in mini.rows.items():
        assert {key: rows[f"audio/{file}"][key] for key in cells} == cells
    assert all((out / file).is_file() for file in rows)
    listing = list_audio(str(out / "labels.csv"), {})
    assert {file.name for file in listing.files} == rows.keys() and listing.rejects == []
    assert set(next(iter(rows.values()))) == set(RECIPES[name].columns)


@pytest.mark.parametrize("name", MINIS)
def test_an_unpacked_folder_becomes_a_labelled_one_by_a_link(name: str, tmp_path: Path) -> None:
    mini = MINIS[name]
    src = lay_out(tmp_path / "src", mini.clips, mini.texts)
    made = make(RECIPES[name], src, tmp_path / "out")
    check(name, mini, tmp_path / "out")
    assert (tmp_path / "out" / "audio").is_symlink() and (tmp_path / "out" / "audio").resolve() == src.resolve()
    assert made.num_clips == len(mini.clips) - len(mini.left_out)


@pytest.mark.parametrize("name", MINIS)
def test_official_archives_become_the_same_labelled_folder(name: str, tmp_path: Path) -> None:
    mini = MINIS[name]
    src = lay_out(tmp_path / "src", mini.clips, mini.texts)
    downloads = packed(mini, src, tmp_path / "downloads")
    make(RECIPES[name], downloads, tmp_path / "out")
    make(RECIPES[name], src, tmp_path / "linked")
    assert read(tmp_path / "out") == read(tmp_path / "linked")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.num_labels])
def test_what_comes_out_is_a_task_that_evaluate_can_divide(name: str, tmp_path: Path) -> None:
    src = lay_out(tmp_path / "src", MINIS[name].clips, MINIS[name].texts)
    make(RECIPES[name], src, tmp_path / "out")
    task = Task(folder=str(tmp_path / "out"), separator=RECIPES[name].separator)
    plan = plan_task(task, read_labels(tmp_path / "out" / "labels.csv"))
    assert len(plan.folds) == (2 if "fold" in RECIPES[name].columns else 1)
    assert all(len(fold.train) and len(fold.test) for fold in plan.folds)
