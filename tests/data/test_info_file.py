"""classes.json: what a run keeps of its data, and how a damaged or foreign one is told."""

import pytest

from lambdanet.data import DataInfo, info_file

INFO = DataInfo({"image": "image", "label": "label"}, ("cat", "Füchse", "狗"), (3, 7, 9))


def test_what_is_kept_comes_back(tmp_path):
    assert info_file.load(tmp_path) is None, "a run of before had none"
    info_file.keep(INFO, tmp_path, begins=True, write=False)
    assert info_file.load(tmp_path) is None, "another process writes it"
    info_file.keep(INFO, tmp_path, begins=False)  # an older run that goes on
    assert info_file.load(tmp_path) == INFO
    info_file.keep(INFO, tmp_path, begins=False)
    assert [p.name for p in tmp_path.iterdir()] == [info_file.FILE_NAME]


def test_a_run_does_not_go_on_with_other_classes(tmp_path):
    info_file.keep(INFO, tmp_path, begins=True)
    swapped = DataInfo(INFO.features, ("Füchse", "cat", "狗"))
    with pytest.raises(ValueError, match="other classes: 0 was 'cat', is 'Füchse', 1 was"):
        info_file.keep(swapped, tmp_path, begins=False)
    with pytest.raises(ValueError, match="3 then, 2 in the data now; restore the data"):
        info_file.keep(DataInfo({}, ("a", "b")), tmp_path, begins=False)
    assert info_file.load(tmp_path) == INFO
    info_file.keep(swapped, tmp_path, begins=True)  # nothing was saved yet
    assert info_file.load(tmp_path).classes[0] == "Füchse"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("cat", "dog"),
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: '{"classes": [1], "class_ids": [], "features": {}}',
        lambda text: '{"classes": [], "class_ids": ["1"], "features": {}}',
        lambda text: '{"classes": [], "class_ids": [], "features": {"a": 1}}',
        lambda text: "[" * 100_000,
    ],
)
def test_damage_is_told_with_the_way_out(change, tmp_path):
    info_file.keep(INFO, tmp_path, begins=True)
    path = tmp_path / info_file.FILE_NAME
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    for use in (info_file.load, lambda run: info_file.keep(INFO, run, begins=False)):
        with pytest.raises(ValueError, match=r"classes\.json is damaged .*or delete it"):
            use(tmp_path)


def test_names_for_more_classes_than_are_known():
    assert INFO.names(2) == ["cat", "Füchse"]
    assert INFO.names(5)[2:] == ["狗", "class 3", "class 4"]
