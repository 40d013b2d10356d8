"""Tables of files and labels: what is read of them, and everything that can be wrong with one."""

import pytest
from data_helpers import describe, jpeg, open_source
from rich import progress

from configs import base
from lambdanet.data import class_sets, picture_set, prepare


@pytest.fixture
def photos(tmp_path):
    """photos/{0..9}.jpg, each of another colour, for labels.csv beside the folder."""
    (tmp_path / "photos").mkdir()
    for i in range(10):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(jpeg((20 * i, 100, 0), size=(70, 60)))
    return tmp_path


def rows(count=10, head="file,label"):
    lines = [head, *(f"photos/{i}.jpg,{'cat' if i % 2 else 'dog'}" for i in range(count))]
    return "\n".join(lines) + "\n"


def scan(photos, content, on_error="raise", name="labels.csv", **options):
    """What `prepare` would write of a table."""
    (photos / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = picture_set.find(str(photos / name), progress.Progress(disable=True), **options)
    return class_sets.resolved(found.listing, found.folder, on_error)


def error_of(photos, content, **options):
    with pytest.raises(ValueError) as error:
        scan(photos, content, **options)
    return str(error.value)


def named(folder):
    """File -> (split, class)."""
    return {
        file: (split, folder.class_names[label])
        for split, pairs in folder.splits.items()
        for file, label in pairs
    }


def test_a_table_becomes_a_set_that_is_read(photos, capsys):
    (photos / "labels.csv").write_text(rows())
    out = photos / "set"
    assert prepare.main([str(photos / "labels.csv"), str(out), "--split=0.6,0.4"]) == 0
    said = capsys.readouterr().out
    assert "2 classes" in said and "columns file='file', label='label'" in said
    section = base.get_config().data
    section.source, section.data_dir = "image_folder", str(out)
    info, seen = describe(section), {}
    assert info.classes == ("cat", "dog")
    for split in ("train", "validation"):
        source = open_source(section, split)
        for record in map(source.read, range(len(source))):
            seen[record.name.rpartition("file ")[2]] = info.classes[record.fields["label"]]
    assert seen == {f"photos/{i}.jpg": "cat" if i % 2 else "dog" for i in range(10)}


def test_splits_of_a_table_are_kept(photos):
    names = ["train"] * 6 + ["Val", "valid", "test", "test"]
    lines = rows(head="Image;Category").replace(",", ";").splitlines()
    content = [f"{lines[0]};subset;kids"]
    content += [f"{a};{b};True" for a, b in zip(lines[1:], names, strict=True)]
    folder = scan(photos, "\r\n".join(content))
    sizes = {split: len(pairs) for split, pairs in folder.splits.items()}
    assert sizes == {"train": 6, "validation": 2, "test": 2}
    assert "columns file='Image', label='Category', split='subset'; passed over: kids" in str(
        folder.notes
    )
    assert "divide what is not divided" in error_of(
        photos, "\n".join(content), division=picture_set.splitting.Division()
    )


def test_marks_encodings_and_names_of_columns(photos):
    (photos / "photos" / "Ä.jpg").write_bytes(jpeg((1, 2, 3), size=(70, 60)))
    content = rows() + "photos/Ä.jpg,Bär\n"
    wanted = named(scan(photos, content))
    assert wanted["photos/Ä.jpg"][1] == "Bär"
    for encoding in ("utf-8-sig", "utf-16"):
        assert named(scan(photos, content.encode(encoding))) == wanted
    text = error_of(photos, content.encode("cp1252"))
    assert "line 12: byte 0xc4 is no utf-8" in text and "--encoding=cp1252" in text
    assert named(scan(photos, content.encode("cp1252"), encoding="cp1252")) == wanted
    assert "unknown encoding: morse" in error_of(photos, content, encoding="morse")
    tabs = content.replace(",", "\t").replace("file\tlabel", "What\tWhich one")
    assert named(scan(photos, tabs, columns=("What", "Which one"), name="x.tsv")) == wanted
    # The accent may be a character of its own in the table.
    assert named(scan(photos, content.replace("s/Ä", "s/A\u0308"))) == wanted


def test_columns_that_are_missing_are_named(photos):
    text = error_of(photos, rows(head="file,lable"))
    assert "no column label, class, class_name, category, but 'file', 'lable'" in text
    assert "did you mean 'lable'?" in text and "--columns FILE,LABEL[,SPLIT]" in text
    assert "no column file, filename" in error_of(photos, "")
    text = error_of(photos, rows(), columns=("file", "Label"))
    assert "no column Label, but 'file', 'label'; did you mean 'label'?" in text
    assert "'label' is there more than once" in error_of(photos, rows(head="file,label,label"))


def test_everything_wrong_with_rows_is_said_at_once(photos, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "o.jpg"
    outside.write_bytes(jpeg((1, 2, 3)))
    (photos / "photos" / "damaged.jpg").write_bytes(jpeg((1, 2, 3), (400, 300))[:-40])
    wrong = [
        ("photos/gone.jpg,cat", "line 12: photos/gone.jpg: no such file"),
        ("photos,cat", "line 13: photos: a folder"),
        (f"{outside},cat", f"line 14: {outside} lies outside of"),
        ("../o.jpg,cat", "line 15: ../o.jpg lies outside of"),
        ("photos/1.jpg,cat", "line 16: photos/1.jpg stands on line 3, too"),
        ("photos/2.jpg,", "line 17: no label"),
        ("photos/3.jpg", "line 18: 1 columns, and the first line has 2"),
        ("photos/damaged.jpg,cat", "photos/damaged.jpg: image file is truncated"),
        ("labels.csv,cat", "labels.csv: not an image"),
    ]
    content = rows() + "".join(f"{row}\n" for row, _ in wrong)
    text = error_of(photos, content)
    for _, problem in wrong:
        assert problem in text
    assert "9 mistakes; with --on-error=skip: 7 rows left out, 2 images left out" in text
    folder = scan(photos, content, on_error="skip")
    assert sum(map(len, folder.splits.values())) == 10
    assert any(note.startswith("7 rows left out: labels.csv: line 12") for note in folder.notes)


def test_rows_that_contradict_each_other_stop_it(photos):
    text = error_of(photos, rows() + "photos/1.jpg,dog\n", on_error="skip")
    assert "line 12: photos/1.jpg is 'dog' here and 'cat' on line 3" in text
    content = "file,label,split\nphotos/1.jpg,cat,train\nphotos/1.jpg,cat,test\nphotos/2.jpg,dog,x"
    text = error_of(photos, content)
    assert "is 'cat' test here and 'cat' train on line 2" in text
    assert (
        "line 4: split 'x'; allowed: train, training, validation, val, valid, test, testing" in text
    )


def test_a_split_of_foreign_classes_alone_stops_it_though_they_are_left_out(photos, capsys):
    head, *lines = rows(head="file,label,split").splitlines()
    lines = [f"{line},train" for line in lines] + ["photos/new.jpg,lion,test"]
    (photos / "photos" / "new.jpg").write_bytes(jpeg((1, 2, 3)))
    (photos / "labels.csv").write_text("\n".join([head, *lines]))
    arguments = [str(photos / "labels.csv"), str(photos / "set"), "--on-error=skip"]
    assert prepare.main(arguments) == 1
    said = capsys.readouterr().err
    assert "  split 'test' has no images of classes that train has\nafter --on-error=skip, " in said
    assert "1 class left out: test: class 'lion' (1 images) does not" in said
    assert not (photos / "set").exists()


def test_names_that_are_absolute_or_lead_back_do_if_they_stay_inside(photos):
    (photos / "tables").mkdir()
    content = rows().replace("photos/1.jpg", str(photos / "photos" / "1.jpg"))
    content = content.replace("photos/2.jpg", "photos/../photos/2.jpg")
    wanted = named(scan(photos, rows()))
    assert named(scan(photos, content)) == wanted
    text = error_of(photos, rows(), name="tables/labels.csv")
    assert "none of the files is there" in text and "--images" in text
    assert named(scan(photos, content, name="tables/labels.csv", images=str(photos))) == wanted
    assert "is not a directory" in error_of(photos, content, images=str(photos / "no"))


def test_options_of_the_other_kind_are_refused(photos, capsys):
    assert "--depth is for folders" in error_of(photos, rows(), depth=1)
    arguments = [str(photos / "photos"), str(photos / "set"), "--columns=a,b", "--images=x"]
    assert prepare.main(arguments) == 1
    assert "--images, --columns: for tables (.csv, .tsv)" in capsys.readouterr().err
    (photos / "labels.xls").write_text("")
    assert prepare.main([str(photos / "labels.xls"), str(photos / "set")]) == 1
    assert "or a table (.csv) of files and labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    "old, new, images, said",
    [
        ("photos/", "photos\\", "", "10 are there if you write / in place of \\"),
        (".jpg", "", "", "10 are there if you add .jpg to the names"),
        ("photos/", "photos/", "photos", "10 are there if you give --images {0}"),
        ("photos/", "photos\\", "photos", "write / in place of \\ and give --images {0}"),
        ("photos/", "", "", "they are in {0}/photos: give --images {0}/photos"),
        ("photos/", "none/", "photos", "its names must be relative to that folder"),
        ("photos/", "none/", "", "name their folder with --images"),
        ("photos/", "../", "photos", "--images must name a folder that holds all images"),
    ],
)
def test_files_that_are_not_there_are_one_mistake_with_the_way_out(photos, old, new, images, said):
    images = str(photos / images) if images else ""
    text = error_of(photos, rows().replace(old, new), images=images)
    assert said.format(photos) in text and "none of the files is there, such as" in text
    assert ("name their folder" in text) == ("name their" in said) and "line 2" not in text
    assert len(text.splitlines()) <= 3


def test_a_single_name_that_is_near_a_file_says_which(photos):
    text = error_of(photos, rows() + "photos\\1.jpg,cat\nphotos/2,cat\n")
    assert r"line 12: photos\1.jpg: no such file, but photos/1.jpg is" in text
    assert "line 13: photos/2: no such file, but photos/2.jpg is" in text
