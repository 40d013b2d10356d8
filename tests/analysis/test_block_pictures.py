"""Pictures of where blocks look: one for every block, and the documents have them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lambdanet.analysis import block_pictures

DOCUMENTS = Path(__file__).resolve().parents[2] / "docs" / "images" / "attention"


@pytest.mark.exhaustive
def test_draws_what_is_asked_for(tmp_path, capsys):
    assert block_pictures.main([str(tmp_path / "new"), "criss_cross", "se"]) == 0
    names = ["criss_cross.png", "se.gate.png"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == names
    assert capsys.readouterr().out.split() == [str(tmp_path / "new" / n) for n in names]
    picture = Image.open(tmp_path / "new" / "criss_cross.png")
    assert picture.width == block_pictures.WIDTH and picture.mode == "P"
    again = np.asarray(Image.open(DOCUMENTS / "criss_cross.png").convert("L"), float)
    assert np.abs(again - np.asarray(picture.convert("L"), float)).mean() < 5


def test_the_documents_have_every_block():
    drawn = {p.name.partition(".")[0] for p in DOCUMENTS.glob("*.png")}
    assert drawn == set(block_pictures.block_names())


@pytest.mark.parametrize(("name", "message"), [("linformer", "no picture"), ("crisscross", "Did")])
def test_refuses(tmp_path, capsys, name, message):
    with pytest.raises(SystemExit):
        block_pictures.main([str(tmp_path / "new"), name])
    assert message in capsys.readouterr().err and not (tmp_path / "new").exists()
