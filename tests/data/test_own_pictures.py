"""Pictures as people have them: odd files, odd folders, copies; and what is shown before anything
is written.
"""

import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from data_helpers import describe, jpeg, open_source, png
from PIL import Image
from rich import progress

from configs import base
from lambdanet.data import (
    class_sets,
    contact_sheet,
    decode,
    duplicates,
    image_folder,
    picture_facts,
    picture_set,
    prepare,
    sheet_layout,
    sources,
)

RED, BLUE = (250, 0, 0), (0, 0, 250)


@pytest.fixture
def root(tmp_path):
    """root/<class>/<n>.jpg: 10 images each of two classes, all of them different."""
    for name, colour in (("cat", RED), ("dog", BLUE)):
        (tmp_path / "root" / name).mkdir(parents=True)
        for i in range(10):
            picture = jpeg((colour[0], 10 * i, colour[2]), size=(90 + i, 60))
            (tmp_path / "root" / name / f"{i}.jpg").write_bytes(picture)
    return tmp_path / "root"


def find(source, **options):
    return picture_set.find(str(source), progress.Progress(disable=True), **options)


def classes_in(source, **options):
    """Class -> files."""
    found = find(source, **options)
    folder = class_sets.resolved(found.listing, found.folder, "raise")
    names = {name: set() for name in folder.class_names}
    for pairs in folder.splits.values():
        for file, label in pairs:
            names[folder.class_names[label]].add(file)
    return names


def error_of(source, **options):
    with pytest.raises(ValueError) as error:
        classes_in(source, **options)
    return str(error.value)


# ---- Odd pictures --------------------------------------------------------------------------------


def write_odd_pictures(folder):
    """Pictures of all kinds that are read, 40 x 20, red, those of several frames blue later."""
    red, blue = (Image.new("RGB", (40, 20), colour) for colour in (RED, BLUE))
    several = dict(save_all=True, append_images=[blue, blue])
    red.save(folder / "animated.gif", **several)
    red.save(folder / "pages.tif", **several)
    red.save(folder / "animated.png", **several)
    red.save(folder / "animated.webp", lossless=True, **several)
    red.convert("CMYK").save(folder / "print.jpg", quality=95)
    red.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    clear = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    clear.paste((*RED, 255), (0, 0, 20, 20))
    clear.save(folder / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    red.rotate(90, expand=True).save(folder / "turned.jpg", exif=exif, quality=95)
    Image.new("L", (40, 20), 90).save(folder / "grey.png")


def test_odd_pictures_are_read_and_counted(root, tmp_path, capsys):
    write_odd_pictures(root / "cat")
    assert prepare.main([str(root), str(tmp_path / "set"), "--split=1"]) == 0
    said = capsys.readouterr().out
    for note in (
        "pictures animated or of several pages: the first frame counts: 4 of 29",
        "pictures turned upright, as their camera says: 1 of 29",
        "pictures with transparency, laid on white: 1 of 29",
        "pictures of CMYK or YCbCr, converted to RGB: 1 of 29",
        "grey pictures: 1 of 29",
    ):
        assert f"note: {note}\n" in said
    section = base.get_config().data
    section.source, section.data_dir, section.channels = "image_folder", str(tmp_path / "set"), 3
    describe(section)
    source = open_source(section, "train")
    seen = {}
    for record in map(source.read, range(len(source))):
        picture = decode.open_image(record.fields["image"])
        image = decode.crop_and_resize(
            picture, (0, 0, *picture.size), size=(20, 40), channels=3, interpolation="bilinear"
        )
        seen[Path(record.name.rpartition("file ")[2]).name] = (picture.size, np.asarray(image))
    for name in os.listdir(root / "cat"):
        if name[0].isdigit():
            continue
        size, image = seen[name]
        assert size == (40, 20), name
        if name != "grey.png":
            assert np.abs(image[:, :19].astype(int) - RED).max() < 12, name
    assert np.array_equal(seen["clear.png"][1][:, 21:], np.full((20, 19, 3), 255))
    assert (seen["grey.png"][1] == 90).all()


def test_facts_of_a_picture(tmp_path):
    Image.new("RGB", (40, 20), (70, 70, 70)).save(tmp_path / "scan.jpg")
    Image.new("RGB", (40, 20), (70, 70, 90)).save(tmp_path / "photo.jpg")
    Image.new("L", (300, 200)).save(tmp_path / "p.gif")
    facts = {f.name: picture_facts.look(f) for f in tmp_path.iterdir()}
    assert {name: f.grey for name, f in facts.items()} == {
        "scan.jpg": True, "photo.jpg": False, "p.gif": True
    }  # fmt: skip
    assert facts["p.gif"].size == (300, 200) and facts["p.gif"].frames == 1
    whole = (tmp_path / "photo.jpg").read_bytes()
    assert facts["photo.jpg"].digest == duplicates.digest(whole)


def deep_tiff(values):
    """A TIFF of one row of pixels, red, green and blue with 16 bits each."""
    data, tags = struct.pack(f"<{len(values)}H", *values), 9
    end = 8 + 2 + 12 * tags + 4  # behind the tags are the bits of a pixel, then the pixels
    short = {256: len(values) // 3, 257: 1, 259: 1, 262: 2, 277: 3, 278: 1, 279: len(data)}
    entries = {tag: (3, 1, value) for tag, value in short.items()}
    entries |= {258: (3, 3, end), 273: (4, 1, end + 6)}
    listed = b"".join(struct.pack("<HHII", tag, *entries[tag]) for tag in sorted(entries))
    head = b"II*\0" + struct.pack("<IH", 8, tags) + listed + struct.pack("<I", 0)
    return head + struct.pack("<3H", 16, 16, 16) + data


def test_colours_of_16_bits_a_channel_are_read_by_their_upper_8_and_counted(root, tmp_path, capsys):
    values = [4096 * i + 255 for i in range(12)]
    deep = png(16, 2, struct.pack(">12H", *values), transparent=struct.pack(">3H", 1, 1, 1))
    (root / "cat" / "deep.png").write_bytes(deep)
    (root / "dog" / "deep.tif").write_bytes(deep_tiff(values))
    Image.new("RGB", (4, 1)).save(root / "cat" / "flat.png")
    Image.new("RGB", (4, 1)).save(root / "cat" / "flat.tif")
    Image.new("1", (4, 1)).save(root / "cat" / "line.tif")
    for file in (root / "cat" / "deep.png", root / "dog" / "deep.tif"):
        pixels = np.asarray(decode.open_image(file.read_bytes()).load().convert("RGB"))
        assert pixels.ravel().tolist() == [16 * i for i in range(12)]
    assert prepare.main([str(root), str(tmp_path / "set")]) == 0
    said = capsys.readouterr().out
    assert "note: pictures of 16 bits a channel, of which the upper 8 are read: 2 of 25\n" in said


def test_pictures_of_phones_that_are_not_read_say_what_to_do(root):
    for brand in ("heic", "mif1", "avif"):
        (root / "cat" / f"{brand}.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand.encode() + b"0" * 99)
    Image.new("RGB", (9, 9)).save(root / "cat" / "real.avif")
    text = error_of(root)
    for name in ("heic.jpg", "mif1.jpg", "avif.jpg", "real.avif"):
        said = f"cat/{name}: HEIC or AVIF, which is not read: convert it, to JPEG for example"
        assert said in text
    (root / "cat" / "film.jpg").write_bytes(b"\0\0\0\x18ftypisom" + b"0" * 99)
    assert "cat/film.jpg: not an image" in error_of(root)


def test_pictures_that_cannot_be_used_are_all_named(root):
    Image.new("I;16", (9, 9)).save(root / "cat" / "deep.png")
    Image.new("F", (9, 9)).save(root / "cat" / "float.tif")
    Image.new("RGB", (9, 9)).save(root / "cat" / "old.ppm")
    (root / "cat" / "notes.txt").write_text("no picture")
    (root / "dog" / "cut.jpg").write_bytes(jpeg(RED, size=(400, 300))[:-300])
    text = error_of(root)
    for problem in (
        "cat/deep.png: pixel mode 'I;16' is not 8 bits per channel; convert the image first",
        "cat/float.tif: pixel mode 'F' is not 8 bits",
        "cat/old.ppm: format PPM; allowed: JPEG, MPO, PNG, WEBP, BMP, GIF, TIFF",
        "cat/notes.txt: not an image",
        "dog/cut.jpg: image file is truncated",
    ):
        assert problem in text
    assert "5 mistakes; with --on-error=skip: 5 images left out" in text


# ---- Odd folders ---------------------------------------------------------------------------------


def test_nested_classes(root, tmp_path):
    wild = tmp_path / "nested" / "wild"
    shutil.copytree(root / "cat", wild / "cat")
    shutil.copytree(root / "dog", wild / "dog")
    shutil.copytree(root / "dog", tmp_path / "nested" / "tame")
    found = classes_in(tmp_path / "nested")
    assert list(found) == ["tame", "wild/cat", "wild/dog"]
    assert found["wild/cat"] == {f"wild/cat/{i}.jpg" for i in range(10)}
    found = classes_in(tmp_path / "nested", depth=1)
    assert list(found) == ["tame", "wild"] and len(found["wild"]) == 20
    assert "tame/0.jpg: a file where class folders" in error_of(tmp_path / "nested", depth=2)
    # With splits the class is the path below the split.
    shutil.copytree(tmp_path / "nested", tmp_path / "splits" / "train")
    assert list(classes_in(tmp_path / "splits")) == ["tame", "wild/cat", "wild/dog"]
    (wild / "0.jpg").write_bytes(jpeg(RED))
    text = error_of(tmp_path / "nested")
    assert "wild/: images and folders stand in it. With --depth=1 all of it is one class" in text
    assert len(classes_in(tmp_path / "nested", depth=1)["wild"]) == 21


def test_documents_beside_splits_and_classes_are_passed_over(root, tmp_path):
    (root / "LICENSE").write_text("free")
    (root / "labels.csv").write_text("")
    shutil.copytree(root, tmp_path / "splits" / "train")
    shutil.copytree(root / "cat", tmp_path / "splits" / "val" / "cat")
    for name in ("LICENSE", "README.md"):
        (tmp_path / "splits" / name).write_text("")
    found = find(tmp_path / "splits")
    assert not len(found.listing.findings)
    passed = "passed over beside the class folders: LICENSE, README.md, train/LICENSE, train/labels"
    assert any(note.startswith(passed) for note in found.folder.notes)


def test_links_that_lead_back_and_folders_that_are_closed(root, monkeypatch):
    (root / "dog" / "again").symlink_to(root, target_is_directory=True)
    (root / "cat" / "loop.jpg").symlink_to("loop.jpg")
    (root / "emu").mkdir()
    closed = Path.iterdir

    def iterdir(path):
        if path.name == "emu":
            raise PermissionError(13, "Permission denied")
        return closed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    text = error_of(root, depth=1)
    for problem in (
        "dog/again/: a link to a folder that it lies in",
        "cat/loop.jpg: neither a file nor a link to one",
        "emu/: cannot be read (Permission denied)",
    ):
        assert problem in text
    assert "emu/: class without" not in text


def test_links_that_lead_back_are_no_folders_and_unread_classes_stay_in_the_table(
    root, tmp_path, capsys
):
    (root / "dog" / "again").symlink_to(root / "dog", target_is_directory=True)
    arguments = [str(root), str(tmp_path / "set"), "--preview"]
    assert prepare.main([*arguments, "--on-error=skip"]) == 0
    said = capsys.readouterr().out
    assert "dog/again/: a link to a folder that it lies in" in said and "2 classes" in said
    (root / "dog" / "puppies").mkdir()
    shutil.copy(root / "dog" / "0.jpg", root / "dog" / "puppies" / "0.jpg")
    (root / "emu").mkdir()
    (root / "emu" / "0.jpg").write_text("no picture")
    assert prepare.main([*arguments, "--on-error=skip"]) == 1
    said = capsys.readouterr()
    rows = [line.split() for line in said.out.splitlines()]
    assert ["dog", "-", "-", "-", "not", "read"] in rows
    assert ["emu", "-", "-", "-", "not", "read"] in rows
    assert "dog/: images and folders stand in it" in said.err


def test_a_preview_makes_the_folder_that_a_set_would_make(root, tmp_path):
    assert prepare.main([str(root), str(tmp_path / "new" / "set"), "--preview"]) == 0
    names = ["set.preview.png", "set.preview.txt"]
    assert sorted(os.listdir(tmp_path / "new")) == names


def test_the_table_of_nothing_has_no_share_of_it(root, tmp_path, capsys):
    for file in root.rglob("*.jpg"):
        file.write_text("no picture")
    assert prepare.main([str(root), str(tmp_path / "set")]) == 1
    assert "100.0 %" not in capsys.readouterr().out


def test_classes_that_are_none_one_or_alike(root, tmp_path, capsys):
    shutil.copytree(root / "cat", root / "Cat")
    assert prepare.main([str(root), str(tmp_path / "set")]) == 0
    said = capsys.readouterr().out
    assert "note: classes whose names differ only in case: Cat, cat; if they are one" in said
    assert (
        "warning: pictures under two classes, of which one is wrong: 10: train: Cat/0.jpg" in said
    )
    shutil.rmtree(root / "Cat")
    shutil.rmtree(root / "dog")
    assert "there is but one class, 'cat': nothing can be told" in error_of(root)
    assert "cat: 10 files and no folders in it; every class needs" in error_of(root / "cat")
    (root / "dog").mkdir()
    text = error_of(root)
    assert "dog/: class without images" in text and "but one class, 'cat'" in text


def test_nothing_is_written_into_the_photos(root, tmp_path, capsys):
    before = sorted(root.rglob("*"))
    for inside in (root, root / "set", root / "cat" / "set"):
        assert prepare.main([str(root), str(inside)]) == 1
        assert f"{inside} lies in {root}; name a directory outside" in capsys.readouterr().err
    assert sorted(root.rglob("*")) == before
    # Nor does the message for photos that are not prepared ask for it.
    section = base.get_config().data
    section.source, section.data_dir = "image_folder", str(root)
    with pytest.raises(ValueError) as error:
        sources.open_builder(section)
    text = str(error.value)
    assert f"prepare {root} prepared/root` and set data.data_dir=prepared/root" in text


# ---- Copies --------------------------------------------------------------------------------------


def test_copies_are_warned_of_with_names(root, tmp_path, capsys):
    shutil.copytree(root, tmp_path / "splits" / "train")
    for name in ("cat", "dog"):
        (tmp_path / "splits" / "test" / name).mkdir(parents=True)
    splits = tmp_path / "splits"
    for number in (3, 4):
        shutil.copy(root / "cat" / f"{number}.jpg", splits / "test" / "cat" / f"new{number}.jpg")
    shutil.copy(root / "dog" / "5.jpg", splits / "test" / "cat" / "wrong.jpg")
    shutil.copy(root / "dog" / "6.jpg", splits / "train" / "dog" / "twice.jpg")
    (splits / "test" / "dog" / "other.jpg").write_bytes(jpeg((9, 99, 9)))
    assert prepare.main([str(splits), str(tmp_path / "set")]) == 0
    said = capsys.readouterr().out
    assert (
        "warning: pictures of test that are in train, too: 3; a score on pictures of the "
        "training is none: train: train/cat/3.jpg = test: test/cat/new3.jpg; train: "
        "train/cat/4.jpg = test: test/cat/new4.jpg; train: train/dog/5.jpg = test: "
        "test/cat/wrong.jpg\n"
    ) in said
    assert "warning: pictures under two classes, of which one is wrong: 1: train: train/dog" in said
    assert "warning: pictures of train that occur there more than once: 1 (kept)" in said
    rows = [line.split() for line in said.splitlines()]
    assert ["of", "test,", "in", "train", "too", "3"] in rows and ["within", "train", "1"] in rows
    summary = (tmp_path / "set" / "summary.txt").read_text()
    assert "the same: train: train/dog/6.jpg = train: train/dog/twice.jpg\n" in summary


# ---- Preview -------------------------------------------------------------------------------------


def test_a_preview_writes_two_files(root, tmp_path, capsys):
    (root / "cat" / "notes.txt").write_text("")
    shutil.copy(root / "cat" / "0.jpg", root / "cat" / "again.jpg")
    before = set(tmp_path.rglob("*"))
    assert prepare.main([str(root), str(tmp_path / "set/"), "--preview"]) == 1
    out, err = capsys.readouterr()
    assert "with --on-error=skip: 1 image left out" in err and "cat/notes.txt: not an" in err
    written = {tmp_path / "set.preview.png", tmp_path / "set.preview.txt"}
    assert set(tmp_path.rglob("*")) - before == written
    text = (tmp_path / "set.preview.txt").read_text()
    for line in ("images left out: cat/notes.txt: not an image", "the same: "):
        assert line in text
    rows = [line.split() for line in out.splitlines()]
    assert ["smallest", "90", "x", "60"] in [row[:4] for row in rows]
    assert ["largest", "99", "x", "60"] in [row[:4] for row in rows]
    (total,) = [row for row in rows if row[:2] == ["2", "classes"]]
    assert total[-3:] == ["21", "100.0", "%"]
    assert prepare.main([str(root), str(tmp_path / "set"), "--preview", "--on-error=skip"]) == 0
    assert "note: 1 image left out: cat/notes.txt" in capsys.readouterr().out
    assert set(tmp_path.rglob("*")) - before == written


def test_the_sheet_shows_whole_pictures_of_every_class(root, tmp_path):
    image_folder.prepare(str(root), str(tmp_path / "set"))
    with Image.open(tmp_path / "set" / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    step = contact_sheet.SIDE + sheet_layout.GAP
    for row in range(2):
        shown = pixels[sheet_layout.GAP + row * step :][: contact_sheet.SIDE]
        for column in range(8):
            left = sheet_layout.NAME_WIDTH + column * step
            part = shown[:, left : left + contact_sheet.SIDE]
            middle = part[contact_sheet.SIDE // 2, 5:-5]
            assert np.abs(middle - middle[0]).max() < 8 and middle[0][2 * row] > 230
            assert (part[:10] == 255).all()  # 3 : 2, the whole of it
        assert (shown[:, : sheet_layout.NAME_WIDTH] < 128).any()  # the name


def test_many_classes_fit_the_sheet(tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "MOST_CLASSES", 3)
    (tmp_path / "0.jpg").write_bytes(jpeg(RED))
    names = tuple("abcdefg")
    rows = [("0.jpg", label) for label in range(7)]
    sheet = contact_sheet.draw(class_sets.Folder(tmp_path, names, {"train": rows}))
    gap = sheet_layout.GAP
    assert sheet.height == 3 * (contact_sheet.SIDE + gap) + gap + 20
    assert sheet_layout.chosen(range(100), 4) == [0, 25, 50, 75]
