"""`prepare voc`: boxes of Pascal VOC's format, and everything that is wrong at once."""

import unicodedata

import numpy as np
import pytest
from data_helpers import jpeg
from PIL import Image

from configs import base
from lambdanet import data
from lambdanet.data import box_sets, box_sheet, lined_xml, objects, prepare, voc_folders
from lambdanet.drawing import box_drawing

SIZE = (40, 30)


def thing(name="cat", box=(1, 1, 40, 30), difficult=0):
    edges = "".join(f"<{k}>{v}</{k}>" for k, v in zip(voc_folders.EDGES, box, strict=True))
    return (
        f"<object>\n<name>{name}</name>\n<difficult>{difficult}</difficult>\n"
        f"<part><name>head</name><bndbox/></part>\n<bndbox>{edges}</bndbox>\n</object>\n"
    )


def write(root, stem, *things, size=SIZE):
    said = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    text = f"<annotation>\n<filename>{stem}.jpg</filename>\n{said}\n{''.join(things)}</annotation>"
    (root / "Annotations" / f"{stem}.xml").write_text(text)


@pytest.fixture
def root(tmp_path):
    """Six pictures with lists of splits."""
    folder = tmp_path / "voc"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for n in range(6):
        (folder / "JPEGImages" / f"{n}.jpg").write_bytes(jpeg((40 * n, 0, 0), SIZE))
        write(folder, n, thing(), thing("dog", (5, 6, 5, 20), n % 2))
    write(folder, 5)
    lists = {"train": "0\n1\n2\n", "val": "3\n", "trainval": "0\n1\n2\n3\n", "test": "4\n5\n"}
    lists["cat_train"] = "0 1\n1 -1\n2 0\n"
    for name, text in lists.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    return folder


def run(root, *options):
    return prepare.main(["voc", str(root), str(root.parent / "out"), *options])


def read(root, split="train"):
    section = base.get_config().data
    section.source, section.data_dir = "tfds", str(root.parent / "out")
    info = objects.read(data.open_builder(section))
    source = data.open_source(section, split, info.features)
    found = {}
    for record in map(source.read, range(len(source))):
        options = dict(on_error="raise", masks=False)
        found[record.name.rsplit("file ", 1)[1]] = objects.read_objects(record, SIZE, 2, **options)
    return found, info


def test_lists_are_the_splits_and_boxes_count_from_one(root, capsys):
    assert run(root) == 0
    out = capsys.readouterr().out
    assert "2 classes, train 3, validation 1, test 2" in out
    assert "trainval.txt is train.txt and val.txt: not stored" in out
    assert "pictures without objects in test: 1 (kept)" in out
    rows = [line.split() for line in out.splitlines()]
    assert rows[1] == ["0", "cat", "3", "3", "1", "1", "1", "1"]
    assert rows[2] == ["1", "dog", "2", "2", "0", "0", "1", "1"]
    found, info = read(root)
    assert sorted(found) == ["0.jpg", "1.jpg", "2.jpg"]
    assert info.classes == ("cat", "dog") and info.class_ids == ()
    assert found["1.jpg"].boxes.tolist() == [[0, 0, 40, 30], [4, 5, 5, 20]]  # one is a pixel wide
    assert found["1.jpg"].crowd.tolist() == [False, True] and not found["0.jpg"].crowd.any()
    assert found["0.jpg"].area.tolist() == [1200, 15]
    assert len(read(root, "test")[0]["5.jpg"]) == 0


def test_boxes_that_begin_at_zero_count_from_there(root, capsys):
    write(root, 0, thing(box=(0, 0, 40, 30)))
    write(root, 1, thing(box=(2, 3, 4, 5)))
    for n in (2, 3, 4):
        write(root, n, thing())
    assert run(root) == 0
    assert "boxes begin at 0: they count from 0" in capsys.readouterr().out
    assert read(root)[0]["1.jpg"].boxes.tolist() == [[2, 3, 4, 5]]


def test_without_lists_splits_are_taken(root, capsys):
    for file in (root / "ImageSets" / "Main").iterdir():
        file.unlink()
    (root / "JPEGImages" / "9.jpg").write_bytes(jpeg((0, 0, 0), SIZE))
    assert run(root, "--split=0.66,0.34") == 0
    out = capsys.readouterr().out
    assert "train 3, validation 3" in out and "pictures without annotations: 1 (passed over)" in out


def test_shares_are_refused_where_lists_say_which_pictures_are_which(root, capsys):
    for name in ("train", "val", "test", "cat_train"):
        (root / "ImageSets" / "Main" / f"{name}.txt").unlink()
    assert run(root, "--split=0.5,0.5", "--on-error=skip") == 1
    said = capsys.readouterr().err
    assert (
        "--split divides what is not divided; here ImageSets/Main has lists: leave it out" in said
    )
    assert run(root) == 0


def test_boxes_are_checked_as_they_are_stored(root, capsys):
    write(root, 0, thing(box=(5, 5, 4.0000001, 20)), thing())
    assert run(root) == 1
    said = capsys.readouterr().err
    assert "box (5, 5, 4, 20) has no area: it is 1e-07 wide and 16 high (32 bits" in said
    assert run(root, "--on-error=skip") == 0
    assert len(read(root)[0]["0.jpg"]) == 1


def test_trainval_alone_is_training(root, capsys):
    for name in ("train", "val", "cat_train"):
        (root / "ImageSets" / "Main" / f"{name}.txt").unlink()
    (root / "ImageSets" / "Main" / "test.txt").write_text("4\n")
    assert run(root) == 0
    out = capsys.readouterr().out
    assert "train 4, test 1" in out and "annotations that no list of ImageSets/Main names: 1" in out


def test_everything_that_is_wrong_is_said_at_once(root, capsys):
    write(
        root, 0, thing("unicorn"), thing(box=(9, 9, 9, 9)), thing(box=(30, 5, 20, 9)),
        thing(box=(50, 1, 60, 9)), thing(box=("x", 1, 2, 3)), thing(box=(20, 1, 60, 9)), thing(""),
    )  # fmt: skip
    write(root, 1, thing(), size=(40, 31))
    (root / "Annotations" / "2.xml").write_text("<annotation>\n<object>")
    (root / "Annotations" / "3.xml").unlink()
    (root / "Annotations" / "3.xml").mkdir()
    (root / "JPEGImages" / "4.jpg").unlink()
    (root / "JPEGImages" / "5.jpg").write_bytes(jpeg((9, 9, 9), (64, 64))[:-300])
    names = root.parent / "names.txt"
    names.write_text("dog\ncat\n")
    assert run(root, "--classes", str(names)) == 1
    said = capsys.readouterr().err
    for problem in (
        "Annotations/0.xml: line 8: class 'unicorn' is none of the names",
        "Annotations/0.xml: line 14: box (9, 9, 9, 9) has no area: it is a point, as a click",
        "Annotations/0.xml: line 20: box (30, 5, 20, 9) has no area: it is -9 wide and 5 high",
        "Annotations/0.xml: line 26: box (50, 1, 60, 9) lies outside of the picture",
        "Annotations/0.xml: line 28: bndbox is ['x', '1', '2', '3']; it needs numbers xmin, y",
        "Annotations/0.xml: line 38: box (20, 1, 60, 9) ends outside of the picture",
        "Annotations/0.xml: line 40: name '' is no class",
        "Annotations/1.xml: line 3: says 40 x 31, and the picture has 40 x 30",
        "Annotations/2.xml: cannot be read as XML (no element found: line 2",
        "Annotations/3.xml: cannot be read (Is a directory)",
        "Annotations/4.xml: no picture JPEGImages/4.*",
        "JPEGImages/5.jpg: ",
    ):
        assert problem in said
    assert not (root.parent / "out").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '<?xml version="1.0" encoding="foo-8"?><annotation/>',
            "unknown encoding: foo-8); store it",
        ),
        ('<?xml version="1.0" encoding="gbk"?><annotation/>', "multi-byte encodings are not supp"),
        ("<html><body/></html>", "line 1: its outermost element is 'html', not 'annotation'"),
        (
            f"<annotation><size><width>{'9' * 5000}</width></size></annotation>",
            'line 1: says "9999',
        ),
    ],
)
def test_files_that_are_no_annotations_are_named(root, capsys, text, problem):
    (root / "Annotations" / "0.xml").write_text(text)
    (root / "Annotations" / "1.xml").rename(root / "Annotations" / "1.XML")
    write(root, 2, thing(difficult="perhaps"), thing(difficult="true"))
    assert run(root) == 1
    said = capsys.readouterr().err
    assert "Annotations/0.xml: " in said and problem in said
    assert "Annotations/2.xml: line 4: difficult is 'perhaps'; allowed: 0, 1" in said
    assert "2 mistakes" in said
    assert run(root, "--on-error=skip") == 0
    assert read(root)[0]["2.jpg"].crowd.tolist() == [True]


def test_what_can_be_left_out_is_left_out_and_counted(root, capsys):
    write(root, 0, thing("unicorn"), thing(box=(9, 9, 9, 9)), thing(box=(20, 1, 60, 9)))
    write(root, 1, thing(), size=(40, 31))
    write(root, 2, thing("dog"), size=("", 0))  # left open
    names = root.parent / "names.txt"
    names.write_text("dog\ncat\n")
    assert run(root, "--classes", str(names), "--on-error=skip") == 0
    out = capsys.readouterr().out
    assert "note: 2 objects left out: Annotations/0.xml: line 8: class 'unicorn'" in out
    assert "note: 1 picture left out, with its objects: Annotations/1.xml" in out
    assert "note: 1 box cut at the border" in out
    found, info = read(root)
    assert info.classes == ("dog", "cat")
    assert found["0.jpg"].boxes.tolist() == [[19, 0, 40, 9]] and sorted(found) == ["0.jpg", "2.jpg"]


def test_lists_that_contradict_each_other(root, capsys):
    main = root / "ImageSets" / "Main"
    (main / "test.txt").write_text("4\n0\n4\n")
    (root / "JPEGImages" / "0.png").write_bytes(b"")
    for name in ("Valid", "my split", "1"):
        (main / f"{name}.txt").write_text("5\n")
    assert run(root, "--on-error=skip") == 1
    said = capsys.readouterr().err
    assert "ImageSets/Main/test.txt: line 3: 4 stands on line 1, too" in said
    assert "ImageSets/Main/val.txt: the split 'validation', as Valid.txt is" in said
    assert "ImageSets/Main/my split.txt: 'my split' is no name of a split; allowed: lett" in said
    assert "ImageSets/Main/1.txt: '1' is no name of a split" in said
    assert "ImageSets/Main/train.txt: 0 stands in test.txt, too" in said
    assert "JPEGImages/0.png: the same name as 0.jpg up to the ending" in said
    assert prepare.main(["voc", str(main), str(root.parent / "out")]) == 1
    assert "has no folder JPEGImages" in capsys.readouterr().err


def test_document_types_are_refused_and_lines_are_known(tmp_path):
    file = tmp_path / "a.xml"
    file.write_text('<!DOCTYPE a [<!ENTITY b "cc">]>\n<a>&b;</a>')
    with pytest.raises(ValueError, match="document type"):
        lined_xml.read(file)
    file.write_text("<a>\n <b> x\n</b>\n\n<b>y</b></a>")
    top = lined_xml.read(file)
    assert [(b.line, b.text) for b in top.all("b")] == [(2, "x"), (5, "y")]
    assert top.text_of("b") == "x" and top.text_of("c") == "" and top.find("c") is None


@pytest.mark.parametrize("edge", ["1_0", "٣", "0x1", "1,5", "", "+ 3"])
def test_only_plain_numbers_are_edges(root, capsys, edge):
    write(root, 0, thing(box=(edge, 1, 20, 20)), thing(box=(" 1.50 ", "2e0", "+20", 20)))
    assert run(root) == 1
    said = capsys.readouterr().err
    assert f"line 4: bndbox is [{edge!r}, '1', '20', '20']; it needs numbers xmin, ymin" in said
    assert "1 mistake" in said
    assert run(root, "--on-error=skip") == 0
    assert read(root)[0]["0.jpg"].boxes.tolist() == [[0.5, 1, 20, 20]]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_match_in_any_unicode_form(root, capsys, form):
    """Of lists, annotations and pictures, and of classes."""
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    ours, theirs = (unicodedata.normalize(f, "caf\u00e9") for f in (form, other))
    for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        name = ours if folder == "JPEGImages" else theirs
        (root / folder / f"0.{ending}").rename(root / folder / f"{name}.{ending}")
    write(root, theirs, thing(ours), thing(theirs))
    (root / "ImageSets" / "Main" / "trainval.txt").unlink()
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"{theirs}\n1\n")
    names = root.parent / "names.txt"
    names.write_text(f"dog\ncat\n{ours}\n")
    assert run(root, "--classes", str(names)) == 0
    assert "3 classes, train 2" in capsys.readouterr().out
    (root / "JPEGImages" / f"{theirs}.jpg").write_bytes(jpeg((0, 0, 0), SIZE))
    with pytest.raises(ValueError, match=r"up to the ending \(in another Unicode form\)"):
        box_sets.resolved(voc_folders.find(root), "raise")


def test_a_split_of_which_all_objects_are_left_out_is_not_written(root, capsys):
    write(root, 3, thing(box=(9, 9, 9, 9)))
    assert run(root, "--on-error=skip") == 1
    said = capsys.readouterr().err
    assert "split 'validation' has no objects, or crowds alone: nothing can be measured on" in said
    assert "after --on-error=skip, with 1 object left out: Annotations/3.xml: line 8: box" in said
    for n in range(5):
        write(root, n, thing(), size=(1, 1))
    assert run(root, "--on-error=skip") == 1
    said = capsys.readouterr().err
    assert "split 'train' has no pictures" in said and "with 5 pictures left out" in said
    assert not (root.parent / "out").exists()


def test_splits_that_are_taken_have_objects(root, capsys):
    for file in (root / "ImageSets" / "Main").iterdir():
        file.unlink()
    for n in range(1, 6):
        write(root, n)
    assert run(root, "--split=0.66,0.34") == 1
    said = capsys.readouterr().err
    assert "has no objects, or crowds alone, when the pictures are divided (train 3, valid" in said
    assert run(root, "--split=1") == 0


# ---- The contact sheet ---------------------------------------------------------------------------


def test_a_preview_draws_boxes_and_writes_two_files(root, capsys):
    before = set(root.parent.rglob("*"))
    for n in (0, 1, 2, 4):
        write(root, n, thing(box=(5, 5, 36, 26)), thing("dog", (9, 9, 20, 20), n == 2))
    write(root, 3, thing(), thing(box=(9, 9, 9, 9)))
    assert run(root, "--preview") == 1
    out, err = capsys.readouterr()
    destination = root.parent / "out"
    assert f"{destination}.preview.png, {destination}.preview.txt: written, and nothing" in out
    assert "1 mistake; with --on-error=skip: 1 object left out" in err and "point" in err
    written = {root.parent / "out.preview.png", root.parent / "out.preview.txt"}
    assert set(root.parent.rglob("*")) - before == written
    text = (root.parent / "out.preview.txt").read_text()
    assert text.startswith(out[: out.index("(number of objects")])
    assert "objects left out: Annotations/3.xml: line 14: box (9, 9, 9, 9) has no area" in text
    assert run(root, "--preview", "--on-error=skip") == 0
    out = capsys.readouterr().out
    assert "note: at most 2 objects in a picture; without masks" in out
    assert "note: 1 object left out" in out and "train with" not in out
    with Image.open(root.parent / "out.preview.png") as sheet:
        pixels = np.asarray(sheet)
    # Of both classes the three pictures of train; in two of the six the dog is difficult.
    for number, width, height in ((0, 6 * 32, 6 * 22), (1, 6 * 12, 6 * 12)):
        colour = box_drawing.class_colour(number)
        assert (pixels == colour).all(axis=2).sum() > 4 * 2 * (width + height)
    assert set(root.parent.rglob("*")) - before == written


def test_the_sheet_says_what_is_dashed_and_names_the_largest_of_each_class(root, monkeypatch):
    for n in (0, 1, 2):
        cats = [thing(box=(1, 1, 8 + n, 8)), thing(box=(1, 1, 30, 30)), thing(box=(1, 1, 3, 3))]
        write(root, n, *cats, thing("dog", (5, 6, 15, 20), 1))
    seen = []

    def write_labels(drawn, boxes, colours, labels, **options):
        seen.append((np.round(boxes / 6).tolist(), colours, labels))

    monkeypatch.setattr(box_drawing, "write_labels", write_labels)
    assert run(root) == 0
    named = [[0, 0, 30, 30], [4, 5, 15, 20]]
    colours = [box_drawing.class_colour(number) for number in (0, 1)]
    assert seen == [(named, colours, ["cat", "dog"])] * 3
    text = (root.parent / "out" / "summary.txt").read_text()
    assert (
        "(crowds, no class counts them)" in text
        and (root.parent / "out/contact_sheet.png").exists()
    )


def test_a_sheet_that_cannot_be_drawn_leaves_no_set(root, capsys, monkeypatch):
    def picture(*_):
        raise OSError("the picture is gone")

    before = set(root.parent.rglob("*"))
    monkeypatch.setattr(box_sheet, "picture", picture)
    for options in ((), ("--preview",)):
        assert run(root, *options) == 1
        assert "error: the picture is gone" in capsys.readouterr().err
        assert set(root.parent.rglob("*")) == before
