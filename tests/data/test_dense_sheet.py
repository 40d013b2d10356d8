"""Contact sheets of pictures with several classes each: which pictures are shown, and how many."""

import numpy as np
from PIL import Image

from lambdanet.data import dense_sheet, sheet_layout
from lambdanet.data.dense_sheet import Place


def test_pictures_are_those_that_show_most_and_of_rare_classes_first():
    every, few = np.arange(12), np.array([3, 5, 9])
    places = {
        0: Place("train", every, np.where(every % 2 == 1, 0.5, 0.1)),
        1: Place("train", few, np.array([0.1, 0.2, 0.3])),
    }
    assert dense_sheet.pick(places, 2) == {1: [5, 9], 0: [1, 7]}  # of 1, 3, 7, 11
    assert dense_sheet.pick(places, 4)[1] == [3, 5, 9]
    again = {label: Place("train", few, np.ones(3)) for label in (0, 1)}
    assert dense_sheet.pick(again, 3) == {0: [3, 5, 9], 1: [3, 5, 9]}  # there are no others
    others = {0: Place("train", few, np.ones(3)), 1: Place("test", few, np.ones(3))}
    assert dense_sheet.pick(others, 2)[0] == dense_sheet.pick(others, 2)[1]


def test_the_place_with_most_pictures_is_taken():
    places = [Place(name, np.arange(n), np.ones(n)) for name, n in (("a", 0), ("b", 2), ("c", 2))]
    assert dense_sheet.largest(places).split == "b"
    assert dense_sheet.largest(places[:1]) is None and dense_sheet.largest([]) is None


def test_sheets_have_every_class_and_few_pictures():
    decoded = []

    def sheet(classes):
        decoded.clear()
        return dense_sheet.draw(
            [f"class {label}" for label in range(classes)],
            place_of=lambda label: Place("train", np.arange(9 * label, 9 * label + 9), np.ones(9)),
            lines_of=lambda label: ["train 9"],
            colour_of=lambda label: (255, 0, label % 256),
            picture_of=lambda split, row: decoded.append(row) or Image.new("RGB", (240, 60)),
        )

    side, step = dense_sheet.SIDE + sheet_layout.GAP, 60 + sheet_layout.GAP
    for classes, columns, beside in ((21, 4, 1), (41, 2, 2), (90, 1, 4)):
        found = sheet(classes)
        assert len(decoded) == columns * classes and len({n // 9 for n in decoded}) == classes
        block = sheet_layout.NAME_WIDTH + columns * side
        assert found.width == beside * block + sheet_layout.GAP
        lines = -(-classes // beside)
        assert found.height == sheet_layout.GAP + lines * step + 20
        colours = np.asarray(found).reshape(-1, 3)
        reds = np.unique(colours[(colours[:, 0] == 255) & (colours[:, 1] == 0), 2])
        assert len(reds) == classes
    sheet(1000)
    assert len(decoded) == len({n // 9 for n in decoded}) == dense_sheet.MOST_PICTURES
    assert sheet(1).size == (sheet(21).width, sheet_layout.GAP + 2 * step + 20)
    assert len(decoded) == 4 * 21


def test_a_sheet_without_classes_or_pictures_can_be_drawn():
    options = dict(
        place_of=lambda label: None,
        lines_of=lambda label: [],
        colour_of=lambda label: (9, 9, 9),
        picture_of=None,
    )
    assert dense_sheet.draw([], **options).height > 0
    few = dense_sheet.draw(["a", "b"], **options)
    assert few.height < dense_sheet.SIDE
