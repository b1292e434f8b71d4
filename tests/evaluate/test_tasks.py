"""Words of a command line and label tables, as tasks."""

from pathlib import Path

import pytest

from scaleaudio.errors import InputError
from scaleaudio.evaluate.tasks import Task, parse_tasks, read_labels


def test_columns_after_a_colon_are_a_task_each(tmp_path: Path) -> None:
    tasks = parse_tasks([f"{tmp_path / 'synth'}:note,order", str(tmp_path / "esc10")], label="kind")
    assert [(task.title, task.label) for task in tasks] == [
        ("synth:note", "note"),
        ("synth:order", "order"),
        ("esc10:kind", "kind"),
    ]


def test_a_folder_whose_name_holds_a_colon_is_that_folder(tmp_path: Path) -> None:
    folder = tmp_path / "odd:name"
    folder.mkdir()
    assert parse_tasks([str(folder)]) == [Task(folder=str(folder))]


def test_a_task_file_holds_several_tasks_with_folders_relative_to_it(tmp_path: Path) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text("- {folder: piano, train: [group=v16], name: one-shot}\n- {folder: piano, label: octave}\n")
    first, second = parse_tasks([str(file)])
    assert first == Task(folder=str(tmp_path / "piano"), train=("group=v16",), name="one-shot")
    assert second.table_path == tmp_path / "piano" / "labels.csv"
    assert [first.title, second.title] == ["one-shot", "piano:octave"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("folder: a\nlable: note\n", "tasks.yaml: lable: Extra inputs are not permitted; keys are folder, label"),
        ("- 3\n", "tasks.yaml: task: "),
        ("a: [", "tasks.yaml: not YAML: "),
        ("folder: \udcff", "tasks.yaml: not YAML: 'utf-8' codec"),
        ("", "tasks.yaml: task: "),
    ],
)
def test_a_wrong_task_file_is_named_with_the_key(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "tasks.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(InputError) as raised:
        parse_tasks([str(tmp_path / "tasks.yaml")])
    assert said in str(raised.value)


def test_words_that_cannot_be_tasks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text("folder: a")
    with pytest.raises(InputError, match="no task"):
        parse_tasks([])
    with pytest.raises(InputError, match="local folders"):
        parse_tasks(["s3://bucket/clips"])
    with pytest.raises(InputError, match="No such file"):
        parse_tasks([str(tmp_path / "other.yaml")])
    with pytest.raises(InputError, match="apply to folders"):
        parse_tasks([str(tmp_path / "tasks.yaml")], train=["group=a"])
    with pytest.raises(InputError, match="two tasks are called 'clips'"):
        parse_tasks(["a/clips", "b/clips"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\na,1\n", "no column `filename`; its columns are file, label"),
        ("filename,label\n", "no rows"),
        ("", "its columns are none"),
        ("filename,label\na,1,2\n", "row 1 has more cells"),
        ("filename,label\na,1\na,2\n", "row 2 names 'a' a second time"),
    ],
)
def test_a_wrong_label_table_is_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError) as raised:
        read_labels(tmp_path / "labels.csv")
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_label_table_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_labels(tmp_path / "labels.csv")
    (tmp_path / "binary.csv").write_bytes(b"filename,label\n\xff\xfe,1\n")
    with pytest.raises(InputError, match="not a UTF-8 CSV"):
        read_labels(tmp_path / "binary.csv")


def test_a_short_row_has_empty_cells_and_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbffilename,label\na\n")
    assert read_labels(tmp_path / "labels.csv").rows == ({"filename": "a", "label": ""},)
