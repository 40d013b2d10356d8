"""Folders of pictures and masks: pairs, codings, everything that is wrong at once, and the prepared
set.
"""

import shutil

import numpy as np
import pytest
from data_helpers import jpeg
from PIL import Image

from configs import base
from lambdanet import data
from lambdanet.data import dense_sheet, label_maps, mask_coding, mask_folders, mask_sheet, prepare
from lambdanet.drawing.label_colours import IGNORED_COLOUR

SIZE = (12, 10)


def label_map(seed, classes=3):
    labels = np.random.default_rng(seed).integers(0, classes, SIZE[::-1]).astype(np.uint8)
    labels[0, 0] = 255
    return labels


@pytest.fixture
def folders(tmp_path):
    """images/<n>.jpg and masks/<n>.png, n = 0 to 9: classes 0 to 2, one ignored pixel each."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for n in range(10):
        (tmp_path / "images" / f"{n}.jpg").write_bytes(jpeg((200, 10 * n, 0), SIZE))
        Image.fromarray(label_map(n)).save(tmp_path / "masks" / f"{n}.png")
    (tmp_path / "names.txt").write_text("sky\nsea\nsand\n\n")
    return tmp_path


def run(folders, *options):
    paths = [str(folders / name) for name in ("images", "masks", "out")]
    return prepare.main(["segmentation", *paths, *options])


def read(folders, split):
    """Label maps of a prepared split, by file, and the classes."""
    section = base.get_config().data
    section.source, section.data_dir = "tfds", str(folders / "out")
    builder = data.open_builder(section)
    mask, names = label_maps.find_mask(builder, "image")
    source = data.open_source(section, split, {"image": "image", "mask": mask})
    records = [source.read(i) for i in range(len(source))]
    found = {
        r.name.rsplit("file ", 1)[1]: label_maps.read_label_map(
            r.fields["mask"], len(names), name=r.name, size=SIZE
        )
        for r in records
    }
    images = {r.name.rsplit("file ", 1)[1]: r.fields["image"] for r in records}
    return found, images, names


def test_copies_of_pictures_are_noted(folders, capsys):
    for kind in ("images", "masks"):
        first = sorted((folders / kind).iterdir())[0]
        shutil.copy(first, folders / kind / f"copy{first.suffix}")
    assert run(folders, "--split=1") == 0
    assert "warning: pictures of train that occur there more than once: 1 (kept)" in (
        capsys.readouterr().out
    )


def test_prepare_command_makes_a_set_that_every_reader_opens(folders, capsys):
    options = ["--classes", str(folders / "names.txt"), "--split", "0.8,0.2"]
    assert run(folders, *options) == 0
    out = capsys.readouterr().out
    assert "3 classes, train 8, validation 2" in out
    assert "train with: python train.py --config=configs/own_masks.py --workdir=runs/out" in out
    assert "--config.data.test_split=" in out
    shares = [line.split() for line in out.splitlines()]
    assert shares[0] == ["class", "train", "validation"]
    every = np.stack([label_map(n) for n in range(10)])
    files = []
    for column, split in ((2, "train"), (5, "validation")):
        found, images, names = read(folders, split)
        assert names == ("sky", "sea", "sand")
        files += list(found)
        for file, labels in found.items():
            assert np.array_equal(labels, every[int(file[0])])
            assert images[file] == (folders / "images" / file).read_bytes()
        numbers = np.stack(list(found.values()))
        for row, value in ((1, 0), (2, 1), (3, 2), (4, 255)):
            cells = shares[row][column - (row == 4) :]
            assert float(cells[0]) == pytest.approx(100 * (numbers == value).mean(), abs=0.006)
            assert int(cells[2]) == len(found)
    assert sorted(files) == [f"{n}.jpg" for n in range(10)]
    assert run(folders, *options) == 1
    assert "is a prepared data set already" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "train"])
def test_empty_folders_are_named_with_what_was_looked_for(folders, capsys, below):
    for name in ("images", "masks"):
        files = sorted((folders / name).iterdir())
        (folders / name / below).mkdir(exist_ok=True)
        for file in files:  # the pictures stay, in their split
            file.rename(folders / name / below / file.name)
    masks = folders / "masks" / below
    for file in masks.glob("*.png"):
        file.unlink()
    assert run(folders) == 1
    said = capsys.readouterr().err.split("1 mistake:\n")[1].splitlines()
    wanted = "looked for files of the formats PNG, BMP, GIF, TIFF, WEBP, with any ending"
    assert said == [f"  {masks}: no masks in it; {wanted}"]
    for file in (folders / "images" / below).glob("*.jpg"):
        file.unlink()
    assert run(folders) == 1
    said = capsys.readouterr().err
    assert f"{folders / 'images' / below}: no pictures in it; looked for files of the" in said
    assert "JPEG" in said and f"{masks}: no masks in it" in said


def test_numbers_are_the_names_if_nobody_gave_any(folders, capsys):
    assert run(folders, "--split=1") == 0
    assert "3 classes, train 10" in capsys.readouterr().out
    assert read(folders, "train")[2] == ("0", "1", "2")


def test_palette_pictures_and_reduced_zero_labels(folders, capsys):
    for n in range(10):
        image = Image.fromarray(label_map(n) % 255, "P")  # the ignored pixel is 0, too
        image.putpalette(list(range(255, -1, -1)) * 3)
        image.save(folders / "masks" / f"{n}.png")
    (folders / "names.txt").write_text("sea\nsand\n")
    options = ["--classes", str(folders / "names.txt"), "--reduce-zero-label", "--split=1"]
    assert run(folders, *options) == 0
    for file, labels in read(folders, "train")[0].items():
        stored = label_map(int(file[0])) % 255
        assert np.array_equal(labels, np.where(stored == 0, 255, stored.astype(int) - 1))


def test_the_home_is_known_behind_an_equals_sign(folders, monkeypatch):
    monkeypatch.setenv("HOME", str(folders))
    paths = ["~/images", "~/masks", "~/out", "--classes=~/names.txt"]
    assert prepare.main(["segmentation", *paths, "--split=1"]) == 0
    assert read(folders, "train")[2] == ("sky", "sea", "sand")


def test_another_value_may_be_the_ignored_one(folders):
    assert run(folders, "--ignore", "2") == 1  # 255 is then no class
    for n in range(10):
        Image.fromarray(label_map(n) % 255).save(folders / "masks" / f"{n}.png")
    assert run(folders, "--ignore", "2", "--split=1") == 0
    found, _, names = read(folders, "train")
    assert names == ("0", "1") and set(np.unique(found["3.jpg"])) == {0, 1, 255}


def test_colours_become_classes(folders, capsys):
    colours = np.array([(0, 0, 0), (0, 0, 255), (255, 200, 0)], np.uint8)
    for n in range(10):
        coded = colours[label_map(n) % 255]
        coded[0, 0] = (255, 255, 255)
        Image.fromarray(coded).save(folders / "masks" / f"{n}.png")
    palette = folders / "palette.csv"
    palette.write_text("name,r,g,b\nsky,0,0,0\nignore,255,255,255\nsea,0,0,255\nsand, 255,200,0\n")
    assert run(folders, "--split=1") == 1
    assert "masks/0.png: a colour picture where a label map is expected" in capsys.readouterr().err
    assert run(folders, "--colours", str(palette), "--split=1") == 0
    found, _, names = read(folders, "train")
    assert names == ("sky", "sea", "sand")
    assert all(np.array_equal(m, label_map(int(file[0]))) for file, m in found.items())


def test_everything_that_is_wrong_is_said_at_once(folders, capsys):
    images, masks = folders / "images", folders / "masks"
    (images / "0.jpg").unlink()
    (masks / "1.png").unlink()
    Image.fromarray(label_map(2)[:-1]).save(masks / "2.png")
    Image.fromarray(label_map(3) + np.uint8(5) * (label_map(3) == 2)).save(masks / "3.png")
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), np.uint8)
    Image.fromarray(noise).save(masks / "4.png")
    (masks / "5.png").unlink()
    Image.fromarray(label_map(5)).save(masks / "5.jpg")
    (images / "6.jpg").write_text("no picture")
    (masks / "7.png").write_bytes((masks / "7.png").read_bytes()[:60])
    Image.fromarray(label_map(8)).save(masks / "8.tif")
    (folders / "names.txt").write_text("sky\nsea\nsand\n")
    assert run(folders, "--classes", str(folders / "names.txt")) == 1
    err = capsys.readouterr().err
    for problem in (
        "masks/0.png: no picture of the name 0.* in images",
        "images/1.jpg: no mask of the name 1.* in masks",
        "masks/2.png: the label map has 12 x 9 pixels, its picture 12 x 10",
        "masks/3.png: label 7 at row",
        "allowed: 0 to 2 (3 classes) and 255 (ignore)",
        "masks/4.png: a colour picture",
        "masks/5.jpg: a label map in format JPEG",
        "images/6.jpg: not an image",
        "masks/7.png: ",
        "masks/8.tif: the same name as 8.png up to the ending",
    ):
        assert problem in err
    assert not (folders / "out").exists()
    assert "; with --on-error=skip: 2 files and folders left out, 6 pairs of picture and m" in err
    assert "wrong:" not in err
    (masks / "8.tif").unlink()  # of two masks nobody can say which one is meant
    options = ["--classes", str(folders / "names.txt"), "--split=0.5,0.5", "--on-error=skip"]
    assert run(folders, *options) == 0
    out = capsys.readouterr().out
    assert "note: 2 files and folders left out: images/1.jpg: no mask of the name 1.*" in out
    assert "note: 6 pairs of picture and mask left out: masks/2.png: the label map has" in out
    kept = {**read(folders, "train")[0], **read(folders, "validation")[0]}
    assert sorted(kept) == ["8.jpg", "9.jpg"]


def test_what_nothing_is_left_of_stops_it_though_mistakes_are_skipped(folders, capsys):
    for kind, ending in (("images", "jpg"), ("masks", "png")):
        for split, numbers in (("train", range(8)), ("test", range(8, 10))):
            (folders / kind / split).mkdir()
            for n in numbers:
                name = f"{n}.{ending}"
                (folders / kind / name).rename(folders / kind / split / name)
    for n in (8, 9):
        (folders / "masks" / "test" / f"{n}.png").write_text("no mask")
    assert run(folders, "--on-error=skip") == 1
    said = capsys.readouterr().err
    assert "  none of the pairs of split 'test' can be used\n" in said
    assert "after --on-error=skip, with 2 pairs of picture and mask left out: masks/test/8" in said
    shutil.rmtree(folders / "masks" / "test")
    assert run(folders, "--on-error=skip") == 0
    said = capsys.readouterr().out
    assert "images/test: the other folder has no split 'test'" in said
    shutil.rmtree(folders / "out")
    (folders / "masks" / "train").rename(folders / "masks" / "test")
    assert run(folders, "--on-error=skip") == 1
    assert "images/train: the other folder has no split 'train'" in capsys.readouterr().err
    for file in (folders / "images").glob("*/*"):
        file.rename(folders / "images" / f"x{file.name}")
    for split in ("train", "test"):
        (folders / "images" / split).rmdir()
    assert run(folders, "--on-error=skip") == 1
    assert "has a mask of its name in" in capsys.readouterr().err
    assert not (folders / "out").exists()


def test_pictures_that_are_cut_off_are_all_named_before_anything_is_written(folders, capsys):
    for n in (2, 5):
        noise = np.random.default_rng(n).integers(0, 256, (*SIZE[::-1], 3), np.uint8)
        file = folders / "images" / f"{n}.jpg"
        Image.fromarray(noise).save(file, quality=95)
        file.write_bytes(file.read_bytes()[:-60])
    assert run(folders, "--classes", str(folders / "names.txt")) == 1
    said = capsys.readouterr().err
    assert "2.jpg" in said and "5.jpg" in said and "truncated" in said.lower()
    assert not (folders / "out").exists()


def test_problems_of_names_are_said_with_the_others(folders, capsys):
    (folders / "images" / "0.jpg").unlink()
    names = folders / "names.txt"
    for text, problems in (
        ("sky\nsea\nsky\n", ["names.txt: class 'sky' stands on lines 1, 3; names must differ"]),
        ("sky\n\nsea", ["names.txt: line 2: a class name must have printable characters"]),
        ("", ["names.txt: no class names"]),
        ("\n".join(map(str, range(256))), ["names.txt: 256 classes; allowed: up to 255"]),
    ):
        names.write_text(text)
        assert run(folders, "--classes", str(names)) == 1
        err = capsys.readouterr().err
        assert "masks/0.png: no picture" in err and all(p in err for p in problems)
    names.write_bytes(b"\xff\xfe")
    assert run(folders, "--classes", str(names)) == 1
    assert "names.txt: is no UTF-8 text" in capsys.readouterr().err
    assert run(folders, "--classes", str(folders / "nowhere.txt")) == 1
    assert "nowhere.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, problem",
    [
        ("a,0,0,0\nb,0,0,0\n", "line 2 has colour (0, 0, 0) once more"),
        ("a,0,0,0\na,1,0,0\n", "class 'a' stands on lines 1, 2"),
        ("a,0,0,256\n", "line 1 is 'a,0,0,256'; it must read 'name,red,green,blue'"),
        ("name,r,g,b\na,0,0\n", "line 2 is 'a,0,0'"),
        ("ignore,0,0,0\n", "no class names"),
    ],
)
def test_palettes_that_cannot_be(tmp_path, text, problem):
    (tmp_path / "palette.csv").write_text(text)
    _, problems = mask_coding.read_palette(tmp_path / "palette.csv")
    assert any(problem in found for found in problems)


def test_colours_beyond_the_palette_are_named_with_their_place():
    coding = mask_coding.Coding(("a",), colours={(1, 2, 3): 0})
    pixels = np.full((4, 5, 3), (1, 2, 3), np.uint8)
    pixels[2, 1:3] = (9, 2, 3)
    with pytest.raises(ValueError, match=r"colour \(9, 2, 3\) at row 2, column 1, and 1 such"):
        coding._by_colour(pixels)


def test_a_palette_stands_alone(folders, capsys):
    (folders / "p.csv").write_text("a,0,0,0\n")
    assert run(folders, "--colours", str(folders / "p.csv"), "--ignore", "0") == 1
    assert "leave out --classes, --ignore and --reduce-zero-label" in capsys.readouterr().err


def test_split_folders_are_the_splits(folders, capsys):
    for kind, ending in (("images", "jpg"), ("masks", "png")):
        for split, numbers in (("training", range(7)), ("validation", range(7, 10))):
            (folders / kind / split / "deep").mkdir(parents=True)
            for n in numbers:
                name = f"{n}.{ending}"
                (folders / kind / name).rename(folders / kind / split / "deep" / name)
    assert run(folders, "--split=1") == 1
    said = f"--split divides what is not divided; here {folders / 'images'} has folders of splits"
    assert said in capsys.readouterr().err
    assert run(folders) == 0
    assert "3 classes, train 7, validation 3" in capsys.readouterr().out
    assert "training/deep/0.jpg" in read(folders, "train")[0]
    (folders / "images" / "test").mkdir()
    (folders / "images" / "more").mkdir()
    (folders / "masks" / "training" / "deep" / "0.png").rename(folders / "masks" / "0.png")
    with pytest.raises(ValueError) as error:
        mask_folders.resolved(mask_folders.find(folders / "images", folders / "masks"), "raise")
    for problem in (
        "images/test: the other folder has no split 'test'",
        "images/more: beside train only folders of splits may stand",
        "masks/0.png: beside train only folders",
        "images/training/deep/0.jpg: no mask",
    ):
        assert problem in str(error.value)


def test_whole_folders_are_held_out_and_named(folders, capsys):
    for n in range(10):
        for kind, ending in (("images", "jpg"), ("masks", "png")):
            (folders / kind / f"video{n % 5}").mkdir(exist_ok=True)
            name = f"{n}.{ending}"
            (folders / kind / name).rename(folders / kind / f"video{n % 5}" / name)
    assert run(folders, "--split=0.6,0.2,0.2") == 0
    out = capsys.readouterr().out
    assert "train 6, validation 2, test 2" in out
    assert "note: validation is made of whole folders: video" in out


def test_classes_that_never_occur_are_said(folders, capsys):
    (folders / "names.txt").write_text("sky\nsea\nsand\nunicorn\n")
    assert run(folders, "--classes", str(folders / "names.txt")) == 0
    assert "note: classes that never occur in train: unicorn" in capsys.readouterr().out
    assert read(folders, "train")[2][3] == "unicorn"


def test_masks_without_any_class_and_folders_that_are_none(folders, capsys):
    for n in range(10):
        Image.fromarray(label_map(n) | 255).save(folders / "masks" / f"{n}.png")
    assert run(folders) == 1
    assert "no pixel has a class" in capsys.readouterr().err
    with pytest.raises(ValueError, match="nowhere is not a directory"):
        mask_folders.find(folders / "nowhere", folders / "masks")
    assert prepare.main(["segmentation", *[str(folders / "images")] * 2, str(folders / "images/x")])
    assert "lies in" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["", "background\nthing\n"])
def test_black_and_white_masks_are_no_class_and_ignored_pixels(folders, capsys, names):
    """255 would count nowhere, and all else be background."""
    for n in range(10):
        Image.fromarray((label_map(n) != 0) * np.uint8(255)).save(folders / "masks" / f"{n}.png")
    (folders / "names.txt").write_text(names)
    assert run(folders, *(["--classes", str(folders / "names.txt")] if names else [])) == 1
    said = capsys.readouterr().err
    assert "only class 0 has pixels, 6" in said and "% are ignored; masks of black" in said
    assert "need --colours with rows like 'thing,255,255,255'" in said
    (folders / "palette.csv").write_text("background,0,0,0\nthing,255,255,255\n")
    assert run(folders, "--colours", str(folders / "palette.csv"), "--split=1") == 0
    found, _, names = read(folders, "train")
    assert names == ("background", "thing")
    assert all(np.array_equal(m, label_map(int(file[0])) != 0) for file, m in found.items())


def test_pictures_of_one_class_only_teach_nothing(folders, capsys):
    for n in range(10):
        Image.fromarray(label_map(n) & 0).save(folders / "masks" / f"{n}.png")
    assert run(folders, "--classes", str(folders / "names.txt")) == 1
    assert capsys.readouterr().err.endswith("  only class 0 has pixels\n")


def test_a_turned_photo_needs_the_mask_of_the_upright_picture(folders, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", SIZE).save(folders / "images" / "0.jpg", exif=exif)
    assert run(folders) == 1
    assert "masks/0.png: the label map has 12 x 10 pixels, its picture 10 x 12 (the camera's" in (
        capsys.readouterr().err
    )


# ---- The contact sheet ---------------------------------------------------------------------------


def coloured(file):
    """Colours in a sheet, and how often."""
    with Image.open(file) as sheet:
        colours, counts = np.unique(np.asarray(sheet).reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(map(int, c)): int(n) for c, n in zip(colours, counts, strict=True)}


def test_the_sheet_has_every_class_in_its_colour_over_the_picture(folders, capsys, monkeypatch):
    named = []

    def write_names(drawn, boxes, colours, names):
        named.append((boxes[:, ::2].mean(axis=1).tolist(), colours, names))

    monkeypatch.setattr(dense_sheet, "write_names", write_names)
    for n in range(10):
        labels = np.zeros(SIZE[::-1], np.uint8)
        labels[2:, 4:8], labels[2:, 8:], labels[0] = 1, 2, 255
        Image.new("RGB", SIZE, (200, 100, 0)).save(folders / "images" / f"{n}.jpg", quality=95)
        Image.fromarray(labels).save(folders / "masks" / f"{n}.png")
    long = "a name that is too long for its place on the sheet"
    names = f"sky\n{long}\nsand\n"
    (folders / "names.txt").write_text(names)
    assert run(folders, "--classes", str(folders / "names.txt")) == 0
    out = capsys.readouterr().out
    sheet = folders / "out" / "contact_sheet.png"
    assert f"note: {sheet} shows images of every class, summary.txt beside it has all tabl" in out
    found = coloured(sheet)
    pictures = 3 * 8 * 240 * 200
    picture = max((c for c in found if c != (255, 255, 255)), key=found.get)
    assert np.abs(np.subtract(picture, (200, 100, 0))).max() < 8
    for parts, colour in ((32, (128, 0, 0)), (32, (0, 128, 0)), (12, IGNORED_COLOUR)):
        mixed = tuple(np.round((np.array(picture) + colour) / 2).astype(int).tolist())
        assert found[mixed] == pytest.approx(pictures * parts / 120, rel=0.02)
        assert found[colour] > 100  # the legend
    colours = [IGNORED_COLOUR, (128, 0, 0), (0, 128, 0)]
    for places, *rest in named:  # in the middle of each, the smallest first
        assert rest == [colours, ["ignored", long, "sand"]]
        np.testing.assert_allclose(places, [120, 120, 200], atol=2)
    summary = (folders / "out" / "summary.txt").read_text()
    assert summary.startswith(out[: out.index("(share of the pixels")])


def test_a_preview_writes_two_files_whatever_is_wrong(folders, capsys):
    before = set(folders.rglob("*"))
    destination = str(folders / "out")
    assert run(folders, "--preview") == 0
    out = capsys.readouterr().out
    assert f"{destination}.preview.png, {destination}.preview.txt: written, and nothing else" in out
    assert "train with" not in out and out.startswith("     class")
    written = {folders / "out.preview.png", folders / "out.preview.txt"}
    assert set(folders.rglob("*")) - before == written
    whole = coloured(folders / "out.preview.png")
    assert run(folders, "--preview") == 0 and coloured(folders / "out.preview.png") == whole
    (folders / "masks" / "3.png").unlink()
    (folders / "names.txt").write_text("sky\nsea\n")
    assert run(folders, "--preview", "--classes", str(folders / "names.txt")) == 1
    assert "images/3.jpg: no mask of the name 3.*" in capsys.readouterr().err
    text = (folders / "out.preview.txt").read_text()
    assert "files and folders left out: images/3.jpg: no mask" in text
    assert "pairs of picture and mask left out: masks/0.png: label 2 at row" in text
    assert set(folders.rglob("*")) - before == written


def test_names_of_more_classes_than_can_be_are_a_mistake_with_split_folders_too(folders, capsys):
    for kind in ("images", "masks"):
        (folders / kind).rename(folders / "train")
        (folders / kind).mkdir()
        (folders / "train").rename(folders / kind / "train")
    (folders / "names.txt").write_text("\n".join(map(str, range(400))))
    for option in ("--split=1", "--preview"):
        assert run(folders, "--classes", str(folders / "names.txt"), option) == 1
        assert "names.txt: 400 classes; allowed: up to 255" in capsys.readouterr().err
    assert (folders / "out.preview.png").exists() and not (folders / "out").exists()


def test_large_pictures_keep_their_thin_lines(folders):
    """Of one pixel in six of a picture, which is shown at a quarter of its size."""
    labels = np.zeros((96, 960), np.uint8)
    labels[:, ::6] = 1
    Image.fromarray(labels).save(folders / "masks" / "a.png")
    Image.new("RGB", (960, 96), "white").save(folders / "images" / "a.png")
    Image.fromarray(labels + np.uint8(1)).save(folders / "masks" / "b.png")
    Image.new("RGB", (960, 96), "white").save(folders / "images" / "b.png")
    found = mask_folders.find(folders / "images", folders / "masks", val_fraction=0)
    row = [pair.image for pair in found.splits["train"]].index("a.png")
    drawn = np.asarray(mask_sheet.picture(found, "train", row))
    assert drawn.shape == (24, 240, 3)
    painted = drawn[:, :, 1] < 250
    assert painted.mean() > 0.5
