"""Who trains and who tests."""

from pathlib import Path

import pytest

from scaleaudio.errors import InputError
from scaleaudio.evaluate.split import Plan, plan_task
from scaleaudio.evaluate.tasks import LabelTable, Task
from scaleaudio.types import Reject

SPLITS = "label=a b a b a b a b; split=train train val val test test ood ood; group=1 1 2 2 3 3 4 4"


def plan(columns: str, **options: object) -> Plan:
    """A plan for a table written as "column=cell cell; column=cell cell", where _ is an empty cell."""
    named = dict(column.strip().split("=") for column in columns.split(";"))
    cells = {name: [cell.replace("_", "") for cell in text.split(" ")] for name, text in named.items()}
    num_rows = len(cells["label"])
    rows = tuple({"filename": str(row)} | {name: cells[name][row] for name in cells} for row in range(num_rows))
    table = LabelTable(Path("labels.csv"), ("filename", *cells), rows)
    return plan_task(Task.model_validate({"folder": "clips"} | options), table)


def parts(plan: Plan) -> list[tuple[list[int], list[int]]]:
    return [(fold.train.tolist(), fold.test.tolist()) for fold in plan.folds]


def test_val_joins_train_and_other_splits_are_counted() -> None:
    found = plan(SPLITS)
    assert parts(found) == [([0, 1, 2, 3], [4, 5])]
    assert found.num_unused == 2


@pytest.mark.parametrize(
    ("options", "train", "test"),
    [
        ({"train": ["group=1"]}, [0, 1], [2, 3, 4, 5, 6, 7]),
        ({"test": ["split=ood"]}, [0, 1, 2, 3], [6, 7]),
        ({"test": ["split=val"]}, [0, 1], [2, 3]),
        ({"train": ["split=train,val", "group!=2"], "test": ["split=ood"]}, [0, 1], [6, 7]),
    ],
)
def test_filters_decide_and_a_missing_one_is_the_rest(
    options: dict[str, list[str]], train: list[int], test: list[int]
) -> None:
    assert parts(plan(SPLITS, **options)) == [(train, test)]


def test_a_fold_column_gives_cross_validation_that_tests_every_clip_once() -> None:
    found = plan("label=a b a b a b; fold=1 1 2 2 3 3; split=train train train train test test")
    assert parts(found) == [([2, 3, 4, 5], [0, 1]), ([0, 1, 4, 5], [2, 3]), ([0, 1, 2, 3], [4, 5])]
    assert found.protocol == "3-fold cross-validation by column fold"


def test_rows_without_a_label_are_left_out_and_counted() -> None:
    found = plan("label=a b _ _; split=train train train test; kind=x y x x", label="kind")
    assert found.num_unlabelled == 0
    found = plan("label=a b _ _ a; split=train train train test test")
    assert parts(found) == [([0, 1], [4])]
    assert found.num_unlabelled == 2


def test_unusable_files_leave_both_parts_and_are_kept_by_name() -> None:
    bad = {1: Reject("clips", "1", "empty"), 5: Reject("clips", "5", "empty"), 7: Reject("clips", "7", "empty")}
    found = plan("label=a b a b a b a b; split=train train val val test test ood ood").without(bad)
    assert parts(found) == [([0, 2, 3], [4])]
    assert [reject.key for reject in found.rejects] == ["1", "5"]  # 7 took no part


def test_a_cell_of_separators_alone_has_no_label() -> None:
    found = plan("label=a|b | c || a | a|b; split=train train train train test test test", separator="|")
    assert parts(found) == [([0, 2], [4, 6])] and found.num_unlabelled == 3
    with pytest.raises(InputError, match="no labelled clip to test on"):
        plan("label=a b | ||; split=train train test test", separator="|")


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        (SPLITS, {"label": "note"}, "no column 'note'; its columns are filename, label, split, group"),
        (SPLITS, {"train": ["group=9"]}, "no row of labels.csv has group '9'; it has 1, 2, 3, 4"),
        (SPLITS, {"train": ["group"]}, "expected COLUMN=VALUE"),
        (SPLITS, {"train": ["group=1,2"], "test": ["group=2"]}, "2 rows pass both"),
        (SPLITS, {"train": ["group=1"], "folds": "group"}, "either folds or"),
        ("label=a b; kind=x y", {}, "no column `split` (train, val, test) and no `fold`"),
        ("label=a b; fold=1 1", {}, "names 1 fold"),
        ("label=a b; split=train train", {}, "no labelled clip to test on"),
        ("label=a a b; split=train train test", {}, "all 2 training clips have label 'a'"),
    ],
)
def test_a_task_that_cannot_be_set_up_says_what_is_wrong(columns: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as raised:
        plan(columns, **options)
    assert said in str(raised.value)
