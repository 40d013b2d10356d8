"""Folders of images: what stands in them, what is wrong, the command that prepares them."""

import os
import resource
import shutil
import unicodedata

import numpy as np
import pytest
from data_helpers import describe, jpeg, open_source, prepare_unchecked
from PIL import Image
from rich import progress

from configs import base
from lambdanet import data
from lambdanet.data import (
    class_folders,
    class_sets,
    decode,
    examples,
    image_folder,
    picture_set,
    prepare,
    splitting,
)

ALL = splitting.Division((1.0, 0.0, 0.0))
SMALL = (
    "'--config.data.image_size=(32, 32)' --config.train.batch_size=8"  # what is said of `folder`
)


def scan(source, on_error="raise", **options):
    """What `prepare` would write of a folder or table."""
    found = picture_set.find(str(source), progress.Progress(disable=True), **options)
    return class_sets.resolved(found.listing, found.folder, on_error)


def test_prepare_command_splits_class_folders(folder, tmp_path, capsys, config):
    destination = tmp_path / "prepared"
    assert prepare.main([str(folder), str(destination), "--split", "0.7,0.2,0.1", "--seed=2"]) == 0
    assert "2 classes, train 14, validation 2, test 4" in capsys.readouterr().out
    config.source, config.data_dir = "image_folder", str(destination)
    info = describe(config)
    assert info.classes == ("cat", "dog")
    files = []
    for split in ("train", "validation", "test"):
        source = open_source(config, split)
        found = [source.read(i) for i in range(len(source))]
        assert set(r.fields["label"] for r in found) == {0, 1}
        assert [r.id for r in found] == list(range(len(found))) and np.array_equal(
            source.ids(), np.arange(len(found))
        )
        files += [r.name.rsplit("file ", 1)[1] for r in found]
        for record in found:
            assert record.fields["image"] == (folder / files[-len(found) + record.id]).read_bytes()
    assert sorted(files) == sorted(str(f.relative_to(folder)) for f in folder.rglob("*.jpg"))
    assert prepare.main([str(folder), str(destination)]) == 1
    assert "is a prepared data set already" in capsys.readouterr().err


def test_prepare_command_reads_split_folders(folder, tmp_path, capsys):
    source = tmp_path / "splits"
    (source / "train").mkdir(parents=True)
    shutil.copytree(folder, source / "train", dirs_exist_ok=True)
    shutil.copytree(folder / "cat", source / "val" / "cat")
    (source / ".DS_Store").write_text("passed over")
    assert prepare.main([str(source), str(tmp_path / "prepared")]) == 0
    out = capsys.readouterr().out
    assert "2 classes, train 20, validation 10" in out
    assert out.splitlines()[-1].endswith("--config.data.test_split= " + SMALL)


def test_prepare_lists_everything_that_is_wrong(folder, tmp_path, capsys):
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "bird").mkdir()
    (folder / "readme").write_text("x")
    (folder / "loose.jpg").write_bytes(jpeg((1, 2, 3)))
    Image.new("I;16", (4, 4)).save(folder / "dog" / "deep.png")
    Image.new("RGB", (4, 4)).save(folder / "dog" / "old.tga")
    assert prepare.main([str(folder), str(tmp_path / "prepared")]) == 1
    err = capsys.readouterr().err
    for problem in (
        "cat/notes.txt: not an image",
        "bird/: class without images",
        "loose.jpg: a file where class folders are expected",
        "dog/deep.png: pixel mode 'I;16'",
        "dog/old.tga: format TGA; allowed: JPEG",
        "5 mistakes; with --on-error=skip: 2 files and folders left out, 3 images left out",
    ):
        assert problem in err
    assert not (tmp_path / "prepared").exists()
    assert prepare.main([str(folder), str(tmp_path / "prepared"), "--on-error=skip"]) == 0
    out = capsys.readouterr().out
    assert "2 classes, train 16, validation 4" in out
    assert "passed over beside the class folders: readme" in out
    assert "note: 3 images left out: cat/notes.txt: not an image; dog/deep.png: pixel" in out
    assert "note: 2 files and folders left out: loose.jpg: a file where class" in out


def test_scan_refuses_foreign_classes_and_very_long_lists_are_cut(folder, monkeypatch):
    (folder / "train").mkdir()
    for name in ("cat", "dog"):
        shutil.move(folder / name, folder / "train" / name)
    shutil.copytree(folder / "train" / "cat", folder / "validation" / "lion")
    with pytest.raises(ValueError, match=r"class 'lion' \(10 images\) does not occur in train"):
        scan(folder)
    with pytest.raises(ValueError, match="'validation' has no images of classes that train has"):
        scan(folder, "skip")
    shutil.copytree(folder / "train" / "dog", folder / "validation" / "dog")
    assert len(scan(folder, "skip").splits["validation"]) == 10
    for i in range(25):
        (folder / "train" / "cat" / f"{i}.txt").write_text("")
    with pytest.raises(ValueError) as error:
        scan(folder)
    assert len(str(error.value).splitlines()) == 1 + 25 + 1
    monkeypatch.setattr(class_folders, "MAX_LISTED", 20)
    with pytest.raises(ValueError, match="and 6 more"):
        scan(folder)


def test_a_long_list_ends_with_what_it_comes_to(folder):
    for i in range(40):
        (folder / "cat" / f"{i}.txt").write_text("")
    (folder / "dog" / "cut.jpg").write_bytes(jpeg((1, 2, 3), (400, 300))[:-40])
    with pytest.raises(ValueError) as error:
        scan(folder)
    lines = str(error.value).splitlines()
    assert sum(line.endswith(".txt: not an image") for line in lines[1:41]) == 40
    assert lines[-4] == "  by cause:"
    assert lines[-3] == "    40 like this: cat/0.txt: not an image"
    assert lines[-2].startswith("    dog/cut.jpg: image file is truncated")
    assert lines[-1] == "41 mistakes; with --on-error=skip: 41 images left out"


def test_a_split_folder_without_images_is_named(folder, tmp_path, capsys):
    source = tmp_path / "splits"
    shutil.copytree(folder, source / "train")
    (source / "val").mkdir()
    (source / "val" / ".DS_Store").write_text("passed over")
    assert prepare.main([str(source), str(tmp_path / "prepared")]) == 1
    assert "  split 'validation' has no images" in capsys.readouterr().err


def test_a_split_that_is_asked_for_and_left_out_is_noted(folder, tmp_path):
    shares = splitting.Division((0.699, 0.3, 0.001))
    assert scan(folder, division=shares).notes == (
        "no split 'test': 0.001 of 20 images is none; another --seed may give some",
    )
    shutil.copytree(folder, tmp_path / "splits" / "train")
    notes = (f"no split {name!r} in {tmp_path / 'splits'}" for name in ("validation", "test"))
    assert scan(tmp_path / "splits").notes == tuple(notes)
    with pytest.raises(ValueError, match="--split, --seed and --group divide what is not divided"):
        scan(tmp_path / "splits", division=shares)


def test_a_seed_is_only_promised_where_it_can_help(tmp_path):
    few = make_folder(tmp_path / "few", cat=1, dog=1, emu=1)
    none = "each class keeps one of its images in training, which leaves none; more images"
    assert f"no split 'validation': {none} are needed" in scan(few).notes
    grouped = make_folder(tmp_path / "grouped", cat=30, dog=30, emu=30)
    division = splitting.Division((0.8, 0.2, 0.0), 0, r"(\w+)/")
    none = none.replace("images", "groups")
    assert f"no split 'validation': {none} are needed" in scan(grouped, division=division).notes
    division = splitting.Division((0.9998, 0.0002, 0.0), 0, r"/(.)")
    assert (
        "no split 'validation': 0.0002 of 9 groups is none; another --seed may give some"
        in scan(make_folder(tmp_path / "some", cat=9, dog=9), division=division).notes
    )


def test_corrupt_image_names_record_and_file(folder, tmp_path, config):
    (folder / "cat" / "3.jpg").write_bytes(jpeg((1, 2, 3), size=(400, 300))[:-40])
    with pytest.raises(ValueError, match="cat/3.jpg: image file is truncated"):
        scan(folder)
    prepare_unchecked(folder, tmp_path / "prepared")  # damaged later, or prepared elsewhere
    config.source, config.data_dir, config.eval_split, config.test_split = (
        "image_folder",
        str(tmp_path / "prepared"),
        "",
        "",
    )
    part = data.Part(open_source(config, "train"))
    bad = [i for i in range(20) if part.read(i).name.endswith("cat/3.jpg")]
    with pytest.raises(
        data.CorruptRecordError,
        match=rf"record {bad[0]} of split 'train'.*file cat/3.jpg.*truncated",
    ):
        examples.load(
            part, bad[0], lambda record, rng: decode.open_image(record.fields["image"]).load(), None
        )


def test_a_bomb_in_a_prepared_set_names_record_and_file(folder, tmp_path, config, monkeypatch):
    Image.new("L", (40, 40)).save(folder / "cat" / "large.png")
    image_folder.prepare(str(folder), str(tmp_path / "prepared"), division=ALL)
    config.source, config.data_dir = "image_folder", str(tmp_path / "prepared")
    part = data.Part(open_source(config, "train"))
    (bad,) = [i for i in range(21) if part.read(i).name.endswith("large.png")]
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    with pytest.raises(
        data.CorruptRecordError, match=f"record {bad} of.*cat/large.png: .*megapixels; allowed"
    ):
        examples.load(part, bad, lambda r, rng: decode.open_image(r.fields["image"]), None)


def make_folder(root, **counts):
    """root/<class>/<n>.jpg, that many of each class."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.jpg").write_bytes(jpeg((i, 0, 0)))
    return root


def classes_of(folder):
    return {split: {label for _, label in rows} for split, rows in folder.splits.items()}


def test_a_class_called_train_is_told_from_the_split(tmp_path):
    vehicles = make_folder(tmp_path / "a", bus=3, car=3, train=3, test=2)
    assert scan(vehicles).class_names == ("bus", "car", "test", "train")
    (vehicles / "train" / ".thumbnails").mkdir()
    (vehicles / "train" / "__MACOSX").mkdir()
    assert "train" in scan(vehicles).class_names
    # Inside the layout with splits it is a class as any other, and the case of the splits is free.
    make_folder(tmp_path / "b" / "Train", bus=3, train=3)
    make_folder(tmp_path / "b" / "Val", train=2)
    folder = scan(tmp_path / "b")
    assert folder.class_names == ("bus", "train")
    assert classes_of(folder) == {"train": {0, 1}, "validation": {1}}
    # Both at once: the error says as what the folder was read, and why.
    (vehicles / "train" / "steam").mkdir()
    with pytest.raises(ValueError, match="read as SRC/<split>.*train/ holds folders") as error:
        scan(vehicles)
    assert "bus: beside train/ only folders" in str(error.value)
    shutil.move(tmp_path / "b" / "Train", tmp_path / "b" / "Training")
    make_folder(tmp_path / "b" / "Testing", bus=1)
    folder = scan(tmp_path / "b")
    assert classes_of(folder) == {"train": {0, 1}, "validation": {1}, "test": {0}}
    make_folder(tmp_path / "b" / "train", bus=1)
    with pytest.raises(ValueError, match="train/: a second folder for split 'train'"):
        scan(tmp_path / "b")


def test_folders_like_splits_are_warned_of(tmp_path):
    make_folder(tmp_path / "training_set", cat=2, dog=2)
    make_folder(tmp_path / "Val_2", cat=2)
    folder = scan(tmp_path)
    assert folder.class_names == ("Val_2/cat", "training_set/cat", "training_set/dog")
    said = "Val_2/, training_set/ hold the same classes; if these are splits, rename them train/"
    assert folder.warnings == (f"{said} and validation/",)
    shutil.move(tmp_path / "Val_2" / "cat", tmp_path / "Val_2" / "lion")
    assert not scan(tmp_path).warnings
    make_folder(tmp_path / "flat", cat=2, dog=2, emu=1)
    assert not scan(tmp_path / "flat").warnings


@pytest.mark.parametrize("around", ["dataset", "my/data"])
def test_splits_in_a_folder_around_them_are_no_classes(tmp_path, around, capsys):
    place = tmp_path / "w" / around
    make_folder(place / "train", cat=2, dog=2)
    for held in ("train/", "test/, train/"):
        assert prepare.main([str(tmp_path / "w"), str(tmp_path / "set")]) == 1
        said = f"the splits lie deeper, in {place} ({held}): prepare that folder"
        assert said in capsys.readouterr().err
        if held == "train/":  # with a test beside it, whatever else stands on the way
            make_folder(place / "test", cat=1)
            make_folder(tmp_path / "w" / "extra", emu=2)
            (tmp_path / "w" / "extra" / "loop").symlink_to(tmp_path / "w")
    assert sorted(scan(place).splits) == ["test", "train"]
    # A class of that name, among others
    make_folder(tmp_path / "v" / "vehicles" / "train", steam=2, electric=2)
    make_folder(tmp_path / "v" / "vehicles", bus=2)
    assert "vehicles/train/steam" in scan(tmp_path / "v").class_names
    make_folder(tmp_path / "u" / "dataset" / "train_set", cat=2)
    make_folder(tmp_path / "u" / "dataset" / "test_set", cat=2)
    (said,) = scan(tmp_path / "u").warnings
    assert said.startswith("dataset/test_set/, dataset/train_set/ hold the same classes")
    assert said.endswith(", and prepare dataset/ in place of the folder around it")


def test_a_depth_beyond_all_images_is_one_mistake(folder):
    said = r"--depth=3, but the images of .* stand at depth 1 \(20\), such as cat/0.jpg; allowed: "
    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError, match=said):
            scan(folder, on_error, depth=3)
    make_folder(folder, **{"wild/lion": 2, "wild/emu": 2})
    with pytest.raises(ValueError, match="cat/0.jpg: a file .* at depth 1 of --depth=2\n"):
        scan(folder, depth=2)


@pytest.mark.parametrize("names", [("Cat", "cat"), ("Ä", "A\u0308"), ("Ä", "a\u0308")])
def test_a_class_of_two_spellings_is_never_left_out(tmp_path, names):
    make_folder(tmp_path / "train", emu=2, **{names[0]: 2})
    make_folder(tmp_path / "test", emu=2, **{names[1]: 2})
    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError) as error:
            scan(tmp_path, on_error)
        said = f"test: class {names[1]!r} (2 images) does not occur in train, and there is "
        assert f"{said}{names[0]!r}: rename one of them" in str(error.value)


def test_litter_is_passed_over_and_counted(folder, tmp_path, capsys):
    for name in ("Thumbs.db", "cat/Thumbs.db", "cat/desktop.ini", ".DS_Store", "dog/.DS_Store"):
        (folder / name).write_text("x")
    (folder / "dog" / "._0.jpg").write_text("x")
    (folder / "__MACOSX" / "cat").mkdir(parents=True)
    assert prepare.main([str(folder), str(tmp_path / "prepared")]) == 0
    out = capsys.readouterr().out
    assert "2 classes, train 16, validation 4" in out
    assert (
        "passed over: 2 .DS_Store, 2 Thumbs.db, 1 __MACOSX, 1 desktop.ini, "
        "1 other names starting with a dot" in out
    )


def test_pictures_of_phones_and_large_ones_are_taken(tmp_path):
    root = make_folder(tmp_path / "photos", a=1, b=1)
    image = Image.new("RGB", (64, 48), (200, 0, 0))
    second = Image.new("RGB", (16, 16))
    image.save(root / "a" / "phone.jpg", "MPO", save_all=True, append_images=[second])
    Image.new("1", (19_000, 10_000)).save(root / "a" / "panorama.png")
    assert class_folders.why_no_image(root / "a" / "panorama.png") == ""
    (root / "a" / "panorama.png").unlink()
    image_folder.prepare(str(root), str(tmp_path / "prepared"), division=ALL)
    section = base.get_config().data
    section.source, section.data_dir = "image_folder", str(tmp_path / "prepared")
    source = open_source(section, "train")
    pictures = [decode.open_image(source.read(i).fields["image"]) for i in range(3)]
    assert {picture.size for picture in pictures} == {(64, 48), (12, 10)}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_and_odd_files_are_all_named(folder, monkeypatch):
    Image.new("1", (20_000, 20_000)).save(folder / "cat" / "bomb.png")
    os.mkfifo(folder / "cat" / "pipe.jpg")
    (folder / "cat" / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "dog" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0")
    (folder / "dog" / "empty.jpg").write_bytes(b"")
    with open(folder / "dog" / "endless.jpg", "wb") as file:
        file.truncate(3 * 2**30)
    with pytest.raises(ValueError) as error:
        scan(folder)
    for problem in (
        "cat/bomb.png: 400 megapixels; allowed: up to 300",
        "cat/pipe.jpg: neither a file nor a link to one",
        "cat/gone.jpg: neither a file nor a link to one",
        "dog/cut.png: ",
        "dog/empty.jpg: not an image",
        "dog/endless.jpg: 3.0 GiB; allowed: up to 1",
    ):
        assert problem in str(error.value)
    assert len(str(error.value).splitlines()) == 7


def test_a_kind_of_set_that_is_misspelt_is_named(folder, tmp_path, capsys):
    for arguments, near in (
        (["segmentaion", str(folder), "masks", "set"], " Did you mean 'segmentation'?"),
        (["COCO", str(folder)], " Did you mean 'coco'?"),
        (["polygons", str(folder), "masks", "set"], ""),
    ):
        assert prepare.main(arguments) == 2
        said = f"error: {arguments[0]!r} is no folder, no table and no kind of set.{near} Allowed: "
        assert f"{said}segmentation, coco, voc, clips, frames" in capsys.readouterr().err
    assert prepare.main([str(tmp_path / "none"), "set"]) == 1
    assert "is not a directory" in capsys.readouterr().err


def test_names_of_all_kinds(tmp_path, capsys):
    root = make_folder(tmp_path / "names", **{"猫": 2, "Äpfel $x_1^2|<b>": 2, "a": 2, "A": 2})
    (root / "猫" / "0.jpg").rename(root / "猫" / "写真\u3000at 3\u202fPM.jpg")
    assert prepare.main([str(root), str(tmp_path / "prepared"), "--split=1"]) == 0
    assert "classes whose names differ only in case: A, a" in capsys.readouterr().out
    section = base.get_config().data
    section.source, section.data_dir = "image_folder", str(tmp_path / "prepared")
    assert describe(section).classes == ("A", "a", "Äpfel $x_1^2|<b>", "猫")
    source = open_source(section, "train")
    assert any("写真\u3000at 3\u202fPM.jpg" in source.read(i).name for i in range(8))

    make_folder(root, **{unicodedata.normalize("NFD", "Äpfel $x_1^2|<b>"): 1, "x ": 1, "y\nz": 1})
    os.mkdir(os.fsencode(root) + b"/\xff")
    (root / os.fsdecode(b"\xff") / "0.jpg").write_bytes(jpeg((1, 2, 3)))
    (root / "a" / os.fsdecode(b"\xfe.jpg")).write_bytes(jpeg((1, 2, 3)))
    with pytest.raises(ValueError) as error:
        scan(root)
    text = str(error.value)
    assert "in another Unicode form" in text and "a/\\udcfe.jpg: a file name must be UTF-8" in text
    for name in ("x ", "y\\nz", "\\udcff"):
        assert f"\n  {name}/: a class name must be UTF-8" in text


def test_failures_of_the_disk_are_one_line(folder, tmp_path, capsys, monkeypatch):
    def run(*arguments):
        status = prepare.main([str(folder), *map(str, arguments)])
        return status, capsys.readouterr().err.splitlines()[-1]

    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file" / "x")[0] == 1
    status, line = run("/proc/x/y")  # before any picture is looked at
    assert status == 1 and "/proc/x/y cannot be made: nothing can be written in /proc (" in line
    assert run(folder / "prepared") == (
        1, f"error: {folder}/prepared lies in {folder}; name a directory outside of it"
    )  # fmt: skip
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # fails as a full disk does
    try:
        status, line = run(tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1 and line.startswith("error: ") and "too large" in line.lower()
    for error, text in ((MemoryError, "error: out of memory"), (KeyboardInterrupt, "interrupted")):

        def fail(*args, error=error, **options):
            raise error

        monkeypatch.setattr(picture_set, "find", fail)
        assert text in run(tmp_path / "full")[1]
    assert sorted(os.listdir(tmp_path)) == ["file", "source"]
