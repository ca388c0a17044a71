"""The page of modalities: all of them are on it, and each has its picture."""

from __future__ import annotations

import PIL.Image

from mmjax.cli import listing
from mmjax.demo import modality_cards


def test_the_page_has_every_modality(root):
    page = (root / "docs" / "modalities.md").read_text()
    names = {item["name"] for item in listing.listing("modalities")["modalities"]}
    assert len(names) >= 25
    assert names - modality_cards.CARDS.keys() == {"Codes"}  # which are learned
    for name in names - {"Codes"}:
        assert f"![{name}](modalities/{name.lower()}.png)" in page
        with PIL.Image.open(root / "docs" / "modalities" / f"{name.lower()}.png") as picture:
            assert picture.size == (modality_cards.SIDE, modality_cards.SIDE)


def test_the_page_is_what_is_written(root, tmp_path):
    counts = modality_cards.write(tmp_path)
    assert modality_cards.table(counts) in (root / "docs" / "modalities.md").read_text()
    for name in counts:  # pictures differ where a font or a codec does
        with PIL.Image.open(tmp_path / f"{name.lower()}.png") as picture:
            assert len(picture.convert("RGB").getcolors()) > 1 or name == "Vector"
