"""What a recipe says about what is missing, wrong, or already there."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import time
from pathlib import Path

import pytest
from archives import lay_out, pack

from scaleaudio.errors import InputError
from scaleaudio.recipes import RECIPES, Recipe, find_recipe, make
from scaleaudio.recipes.base import split_by_hash

CLIPS = [f"audio/{fold}-{word}.wav" for fold in (1, 2) for word in ("dog", "cat")]
TABLE = "filename,fold,category,esc10,src_file\n" + "".join(
    f"{clip.partition('/')[2]},{clip[6]},{clip[8:11]},False,{at}\n" for at, clip in enumerate(CLIPS)
)


@pytest.fixture
def recipe() -> Recipe:
    """ESC-50 as if it had two folds of two clips and two classes."""
    return dataclasses.replace(RECIPES["esc50"], expected={"1": 2, "2": 2}, num_labels=2)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "src", CLIPS, {"meta/esc50.csv": TABLE})


def rows(out: Path) -> list[str]:
    with (out / "labels.csv").open(newline="") as file:
        return [row["filename"] for row in csv.DictReader(file)]


def test_a_whole_data_set_has_no_warnings_and_says_its_counts(recipe: Recipe, src: Path, tmp_path: Path) -> None:
    made = make(recipe, src, tmp_path / "out")
    assert made.warnings == () and made.parts == {"fold 1": (2, 2), "fold 2": (2, 2)} and made.num_labels == 2
    about = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert about["licence"] == recipe.licence and about["clips"]["fold 1"] == {"found": 2, "official": 2}


def test_missing_and_empty_clips_are_listed_and_counted_against_the_official_number(
    recipe: Recipe, src: Path, tmp_path: Path
) -> None:
    (src / CLIPS[0]).unlink()
    (src / CLIPS[3]).write_bytes(b"")
    made = make(recipe, src, tmp_path / "out")
    assert rows(tmp_path / "out") == [f"audio/{CLIPS[1]}", f"audio/{CLIPS[2]}"]
    assert (tmp_path / "out" / "missing.csv").read_text().split() == ["filename", *sorted((CLIPS[0], CLIPS[3]))]
    said = "\n".join(made.warnings)
    assert "2 clips that its tables name are not there" in said
    assert "fold 1: 1 clips; officially there are 2" in said and "fold 2: 1 clips; officially" in said


def test_another_number_of_classes_is_said(recipe: Recipe, src: Path, tmp_path: Path) -> None:
    made = make(dataclasses.replace(recipe, num_labels=50), src, tmp_path / "out")
    assert made.warnings == ("2 classes; officially there are 50",)


def test_a_second_call_makes_the_same_and_follows_what_has_changed(recipe: Recipe, src: Path, tmp_path: Path) -> None:
    make(recipe, src, tmp_path / "out")
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    make(recipe, src, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")} == first
    (src / CLIPS[0]).unlink()
    assert make(recipe, src, tmp_path / "out").num_clips == 3


def test_out_may_lie_inside_the_source(recipe: Recipe, src: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert make(recipe, src, src / "made").num_clips == 4
    downloads = tmp_path / "downloads"
    pack(src, downloads / "ESC-50-master.zip", "audio", "meta")
    for _ in range(2):
        assert make(recipe, downloads, downloads / "made").num_clips == 4
    assert not (downloads / "made" / "audio").is_symlink()


def test_an_archive_after_a_link_does_not_write_into_what_was_linked(recipe: Recipe, src: Path, tmp_path: Path) -> None:
    archive = pack(src, tmp_path / "esc.zip")
    make(recipe, src, tmp_path / "out")
    (src / CLIPS[0]).unlink()
    make(recipe, archive, tmp_path / "out")
    assert not (src / CLIPS[0]).exists() and (tmp_path / "out" / "audio" / CLIPS[0]).is_file()


def test_a_folder_of_something_else_is_not_written_over(recipe: Recipe, src: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "labels.csv").write_text("filename,label\n")
    with pytest.raises(InputError, match=r"labels\.csv that no recipe wrote"):
        make(recipe, src, tmp_path / "mine")
    make(recipe, src, tmp_path / "out")
    with pytest.raises(InputError, match="holds the recipe esc50"):
        make(RECIPES["gtzan"], src, tmp_path / "out")
    (tmp_path / "out" / "recipe.json").write_text("{")
    with pytest.raises(InputError, match="not what a recipe writes"):
        make(recipe, src, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "texts", "expected"),
    [
        ("gone", {}, r"no such file or folder. ESC-50.*https://github.com/karolpiczak/ESC-50"),
        ("src", {"notes.txt": "x"}, r"neither audio nor an official archive of esc50 \(ESC-50\*\.zip.*Get it from"),
        ("src", {"other.tar.gz": "x"}, r"there is other\.tar\.gz: give it by its name"),
        ("src", {"ESC-50-master.zip": "x"}, r"cut off, damaged or no archive"),
    ],
)
def test_what_is_no_source_says_what_would_be(
    name: str, texts: dict[str, str], expected: str, recipe: Recipe, tmp_path: Path
) -> None:
    if texts:
        lay_out(tmp_path / "src", [], texts)
    with pytest.raises(InputError, match=expected):
        make(recipe, tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (None, r"src: no file meta/esc50\.csv\. Give the data set as it is offered"),
        ("filename,fold\na.wav,1\n", r"no column 'category'; its columns are filename, fold"),
        (TABLE + "9-dog.wav,1\n", r"row 5 is cut off"),
        (
            TABLE.replace("audio", "x").replace("-", "_"),
            r"no clip of esc50 here; .*its tables name 4, such as audio/1_",
        ),
    ],
)
def test_tables_that_are_not_the_official_ones_are_named(
    table: str | None, expected: str, recipe: Recipe, tmp_path: Path
) -> None:
    src = lay_out(tmp_path / "src", CLIPS, {} if table is None else {"meta/esc50.csv": table})
    with pytest.raises(InputError, match=expected):
        make(recipe, src, tmp_path / "out")


def test_pointers_of_a_large_file_store_are_not_taken_for_audio(recipe: Recipe, src: Path, tmp_path: Path) -> None:
    for name in CLIPS:
        (src / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(InputError, match="a Git LFS pointer"):
        make(recipe, src, tmp_path / "out")


def test_a_misspelt_recipe_names_the_nearest() -> None:
    assert find_recipe("esc50").name == "esc50"
    for word in ("ESC-50", "esc5"):
        with pytest.raises(InputError, match="did you mean esc50"):
            find_recipe(word)


def test_a_split_by_hash_is_the_same_everywhere_and_has_its_shares() -> None:
    assert [split_by_hash(name) for name in ("ralfherzog", "timobaumann", "a", "b", "c")] == SPLITS
    parts = [split_by_hash(str(number), val=0.1, test=0.2) for number in range(5000)]
    assert abs(parts.count("test") / 5000 - 0.2) < 0.02 and abs(parts.count("val") / 5000 - 0.1) < 0.02


# python -c "import hashlib; print(int.from_bytes(hashlib.sha256(b'a').digest()[:8], 'big') / 2**64)" and so on
SPLITS = ["train", "train", "train", "val", "test"]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_says_what_one_has_to_know(recipe: Recipe) -> None:
    assert recipe.licence and "://" in recipe.url and recipe.gigabytes > 0 and recipe.metric and recipe.protocol
    assert {"split", "fold"} & set(recipe.columns) and recipe.counted in recipe.columns


def test_names_that_are_no_text_are_passed_over(recipe: Recipe, src: Path, tmp_path: Path) -> None:
    (src / "audio" / os.fsdecode(b"3-\xff.wav")).write_bytes(b"x")
    assert make(recipe, src, tmp_path / "out").num_clips == 4


def test_the_source_itself_is_not_written_to(recipe: Recipe, src: Path) -> None:
    with pytest.raises(InputError, match="is the source itself"):
        make(recipe, src, src / "audio" / "..")
    assert not (src / "labels.csv").exists()


def test_parts_that_are_not_there_at_all_are_said(tmp_path: Path) -> None:
    src = lay_out(tmp_path / "src", ["LibriSpeech/dev-clean/84/121123/84-121123-0000.flac"], {})
    said = make(RECIPES["librispeech"], src, tmp_path / "out").warnings
    assert "subset train-other-500: no clips; officially there are 148688" in said
    assert "subset dev-clean: 1 clips; officially there are 2703" in said


def test_what_a_killed_call_left_half_written_is_removed_in_the_end(recipe: Recipe, src: Path, tmp_path: Path) -> None:
    archive, folder = pack(src, tmp_path / "esc.zip"), tmp_path / "out" / "audio" / "audio"
    make(recipe, archive, tmp_path / "out")
    for name, age_seconds in ((".1-dog.wav.0123abcd.tmp", 3600), (".1-cat.wav.0123abcd.tmp", 0), (".mine.tmp", 3600)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age_seconds,) * 2)
    assert make(recipe, archive, tmp_path / "out").num_clips == 4
    assert sorted(path.name for path in folder.glob(".*")) == [".1-cat.wav.0123abcd.tmp", ".mine.tmp"]


def test_a_pipe_is_no_source(recipe: Recipe, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: neither a file nor a folder"):
        make(recipe, tmp_path / "pipe", tmp_path / "out")
