"""How records are divided by their names: for good, by class, and in whole groups."""

import collections

import numpy as np
import pytest

from lambdanet.data import splitting
from lambdanet.data.splitting import Division, divide

COUNTS = {"cat": 900, "dog": 400, "emu": 60, "fox": 12, "gnu": 3, "hen": 1}
NAMES = [f"{label}/{i}.jpg" for label, count in COUNTS.items() for i in range(count)]


def of_class(name):
    return name.split("/")[0]


def splits_of(names, division):
    """Name -> split."""
    parts = divide(names, [of_class(name) for name in names], division)
    found = {names[i]: split for split, rows in parts.items() for i in rows}
    assert len(found) == len(names) == sum(map(len, parts.values()))
    assert all(rows == sorted(rows) for rows in parts.values())
    return found


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.1), (0.9, 0.1, 0.0), (0.5, 0.2, 0.3)])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_further_record_moves_no_other(shares, seed):
    division = Division(shares, seed)
    before = splits_of(NAMES, division)
    assert before == splits_of(NAMES[::-1], division)  # nor does the order
    more = [f"{label}/more {i}.jpg" for label in ("cat", "dog", "emu") for i in range(50)]
    after = splits_of([*more, *NAMES, "ibis/0.jpg"], division)
    assert all(after[name] == split for name, split in before.items())
    fewer = splits_of(NAMES[::2][:600], division)
    moved = [name for name in fewer if fewer[name] != before[name]]
    assert not moved


def test_every_class_is_divided_by_the_shares():
    for seed in range(5):
        found = splits_of(NAMES, Division((0.7, 0.2, 0.1), seed))
        assert found != splits_of(NAMES, Division((0.7, 0.2, 0.1), seed + 1))
        for label, count in COUNTS.items():
            sizes = collections.Counter(s for name, s in found.items() if of_class(name) == label)
            for split, share in (("train", 0.7), ("validation", 0.2), ("test", 0.1)):
                spread = np.sqrt(count * share * (1 - share))
                assert abs(sizes[split] - share * count) <= 4 * spread + 1
                assert sizes[split] or share * count < 1


def test_places_are_frozen():
    assert splitting.place("cat/0.jpg", 0) == 217568985590788 / 2**48
    assert splitting.place("Äpfel/0.jpg", 3) == splitting.place("A\u0308pfel/0.jpg", 3)
    places = np.array([splitting.place(name, 5) for name in NAMES])
    counts = np.histogram(places, 10, (0, 1))[0]
    assert np.abs(counts - len(NAMES) / 10).max() < 4 * np.sqrt(len(NAMES) * 0.09)


def test_small_classes_are_trained_on_and_looked_at():
    names = [f"{label}/{i}" for label in range(300) for i in range(1 + label % 12)]
    found = splits_of(names, Division((0.6, 0.2, 0.2), 1))
    sizes = collections.defaultdict(collections.Counter)
    for name, split in found.items():
        sizes[of_class(name)][split] += 1
    for label, counts in sizes.items():
        assert counts["train"], label
        if 0.2 * sum(counts.values()) >= 1:
            assert counts["validation"] and counts["test"], label
    # A class of two is not taken apart for a share of none.
    assert divide(["a/0", "a/1"], ["a", "a"], Division((1.0, 0.0, 0.0))) == {"train": [0, 1]}


def test_groups_are_never_divided():
    rng = np.random.default_rng(0)
    people = rng.integers(0, 120, 2000)
    names = [f"{'abc'[i % 3]}/p{person}_{i}.jpg" for i, person in enumerate(people)]
    division = Division((0.7, 0.15, 0.15), 3, r"/(p\d+)_")
    found = splits_of(names, division)
    of_person = collections.defaultdict(set)
    for name, split in found.items():
        of_person[name.split("/")[1].split("_")[0]].add(split)
    assert all(len(splits) == 1 for splits in of_person.values())
    assert set().union(*of_person.values()) == {"train", "validation", "test"}
    (note,) = splitting.notes([*names, "a/other.jpg"], division)
    assert note.startswith(f"--group: {len(set(people))} groups of 2000 records, the largest of ")
    assert note.endswith("; 1 match no group and stand for themselves")
    # Without groups in the expression what it matches is the group; several are taken together.
    assert splitting.group_of("cat/anna_03.jpg", "anna|otto") == "=anna"
    assert splitting.group_of("cat/anna_03.jpg", r"^(\w+)/(\w+)_") == "=cat/anna"


def test_a_class_of_one_group_stays_in_training():
    names = [f"a/p{i}_{i}" for i in range(40)] + [f"b/q_{i}" for i in range(40)]
    for seed in range(10):
        found = splits_of(names, Division((0.5, 0.5, 0.0), seed, r"/(\w+?)_"))
        assert {found[name] for name in names[40:]} == {"train"}


@pytest.mark.parametrize(
    ("text", "shares"),
    [("0.8,0.1,0.1", (0.8, 0.1, 0.1)), ("0.9, 0.1", (0.9, 0.1, 0)), ("1", (1, 0, 0))],
)
def test_shares(text, shares):
    assert splitting.parse_shares(text) == shares


@pytest.mark.parametrize(
    "text", ["", "0.8", "80,10,10", "0.8,0.1,0.1,0", "0,1", "a,b", "1.1,-0.1", "nan,0.5", "inf"]
)
def test_shares_that_are_none(text):
    with pytest.raises(ValueError, match=r"together 1, such as 0.8,0.1,0.1"):
        splitting.parse_shares(text)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("(", "is no regular expression"),
        ("zebra", "matches no name, such as 'cat/0.jpg'"),
        ("jpg", "makes one group of all names"),
    ],
)
def test_groups_that_are_none(group, message):
    with pytest.raises(ValueError, match=message):
        splits_of(NAMES, Division(group=group))


def test_what_the_classes_can_spare_for_other_splits():
    groups = splitting.Division(group=r"(\w)\d")
    names = ["a0", "a1", "b0", "b1", "c0"]
    assert splitting.spare(names, list("xxyyz"), splitting.Division()) == (5, 2)
    assert splitting.spare(names, list("xxyyz"), groups) == (3, 0)
    assert splitting.spare(names, list("xyxyx"), groups) == (3, 2), "a group of both classes stays"
