"""Which pictures are held out where nobody has said so, and that nothing is left out in silence."""

import pytest
from coco_helpers import annotation, run
from data_helpers import jpeg

from lambdanet.data import holding_out
from lambdanet.data.holding_out import hold_out

VIDEOS = [f"{video}/{n}.jpg" for video in "abcde" for n in range(20)]
SINGLE = [f"{n}.jpg" for n in range(400)]


def folders_of(files, rows):
    return {name: {files[i].partition("/")[0] for i in of} for name, of in rows.items()}


def test_whole_folders_are_held_out_and_named():
    rows, notes = hold_out(VIDEOS, 0.2, 0.2)
    held = folders_of(VIDEOS, rows)
    assert [len(held[name]) for name in ("train", "validation", "test")] == [3, 1, 1]
    assert sorted(sum(map(list, held.values()), [])) == list("abcde")
    assert notes == tuple(
        f"{name} is made of whole folders: {next(iter(held[name]))}"
        for name in ("validation", "test")
    )
    assert (rows, notes) == hold_out(VIDEOS, 0.2, 0.2)
    many = [f"f{n:02}/{k}" for n in range(40) for k in range(2)]
    assert hold_out(many, 0.5, 0.0)[1][0].endswith(" and 10 more")


def test_a_folder_that_is_too_large_does_not_keep_smaller_ones_from_their_split():
    files = [f"{f}/{n}" for f, size in zip("abcdef", (60, 10, 10, 60, 10, 10), strict=True)
             for n in range(size)]  # fmt: skip
    rows, _ = hold_out(files, 0.15, 0.0)
    assert 20 <= len(rows["validation"]) <= 30


@pytest.mark.parametrize("shares", [(0.1, 0.0), (0.2, 0.2), (0.0, 0.2)])
def test_where_no_folder_is_small_enough_single_pictures_are_held_out_and_that_is_said(shares):
    files = [f"{folder}/{n}.png" for folder in "ab" for n in range(20)]
    rows, notes = hold_out(files, *shares)
    assert set(rows) == {"train", *(n for n, s in zip(("validation", "test"), shares) if s)}  # noqa: B905
    (note,) = notes
    assert "of 40 pictures in 2 folders no whole folders come near" in note
    assert "say which pictures are which, or give --split larger shares" in note
    rows, notes = hold_out(files, *shares, divide_folders=False)  # sequences of frames
    assert set(rows) == {"train"} and len(notes) == sum(map(bool, shares))
    assert "% of 40 pictures is nearer to none than to any of 2 folders; --split" in notes[0]


def test_a_small_folder_beside_a_large_one_is_no_share():
    files = [*(f"{n}.png" for n in range(100)), "extra/1.png", "extra/2.png"]
    rows, notes = hold_out(files, 0.2, 0.0)
    assert len(rows["validation"]) > 10 and "come near validation (20 %)" in notes[0]
    rows, notes = hold_out(files, 0.03, 0.0)
    assert rows["validation"] == [100, 101]
    assert notes == ("validation is made of whole folders: extra",)


def test_a_share_of_less_than_one_picture_is_said():
    assert hold_out(["a.jpg"], 0.9, 0.0) == (
        {"train": [0]},
        ("no split 'validation': 90 % of 1 picture is less than one; --split with a larger share "
         "makes one",),
    )  # fmt: skip
    assert hold_out(["a/1", "b/1", "b/2"], 0.1, 0.0)[1][0].startswith("no split 'validation': 10 %")
    assert hold_out(SINGLE, 0.0, 0.0) == ({"train": list(range(400))}, ())


def test_single_pictures_are_divided_by_their_names_so_that_further_ones_move_none():
    before, _ = hold_out(SINGLE, 0.1, 0.05)
    assert 25 <= len(before["validation"]) <= 60 and 10 <= len(before["test"]) <= 35
    more = [name for n in range(500) for name in (f"new{n}.jpg", *SINGLE[n : n + 1])]
    after, _ = hold_out(more, 0.1, 0.05)
    for name, rows in before.items():
        assert {SINGLE[i] for i in rows} == {more[i] for i in after[name]} & set(SINGLE)


def test_shares_that_are_none():
    for shares in ((-0.1, 0.0), (0.5, 0.5), (float("nan"), 0.0)):
        with pytest.raises(ValueError, match="must be >= 0, together < 1"):
            hold_out(VIDEOS, *shares)
        with pytest.raises(ValueError, match="must be >= 0, together < 1"):
            holding_out.check_shares(*shares)


@pytest.mark.parametrize(("count", "said"), [(10, "single pictures are held out"), (2, "no split")])
def test_boxes_in_folders_are_not_trained_on_in_silence(tmp_path, capsys, count, said):
    images, entries = [], []
    for number in range(2 * count):
        name = f"{'ab'[number % 2]}/{number}.jpg"
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(jpeg((number, 0, 0), (40, 30)))
        images.append(dict(id=number, file_name=name, width=40, height=30))
        entries.append(annotation(number, number))
    content = dict(images=images, annotations=entries, categories=[dict(id=3, name="cat")])
    assert run(tmp_path, content, "--split=0.8,0.2") == 0
    assert said in capsys.readouterr().out
