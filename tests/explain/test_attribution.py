from __future__ import annotations

import base64
import dataclasses
import io
import re

import pytest
import torch
from PIL import Image

from addis.explain import Attribution


def attribution(n: int = 2, signed: bool = False) -> Attribution:
    maps = torch.rand(n, 12, 16) - (0.5 if signed else 0.0)
    return Attribution(
        map=maps, total_bits=maps.sum((1, 2)), method="iba", layer="<layer2>", unit="bits per pixel"
    )


def test_a_page_holds_each_picture_and_its_bits(tmp_path):
    att = attribution()
    page = att.save_html(
        tmp_path / "a.html", torch.randn(2, 3, 12, 16), captions=["cat & dog", "b"]
    )
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", text)
    assert len(pictures) == 2
    for picture in pictures:
        Image.open(io.BytesIO(base64.b64decode(picture))).verify()
    assert f"{float(att.total_bits[0]):,.1f} bits" in text
    assert "cat &amp; dog" in text
    assert "&lt;layer2&gt;" in text
    assert text.count("alt=") == 2
    assert "<script" not in text
    assert not re.search(r"(src|href)=\"http", text)


@pytest.mark.parametrize(("signed", "channels"), [(False, 3), (True, 1)])
def test_a_picture_shows_the_photo_the_map_and_the_bar(tmp_path, signed, channels):
    path = attribution(1, signed).save_png(tmp_path / "a.png", torch.rand(1, channels, 24, 32))
    image = Image.open(path)
    assert image.width > image.height > 100
    assert len(image.getcolors(100_000)) > 200


def test_a_map_of_zeros_and_a_method_without_unit_are_drawn(tmp_path):
    att = Attribution(map=torch.zeros(1, 4, 4), total_bits=torch.full((1,), torch.nan), method="x")
    assert att.save_png(tmp_path / "a.png", torch.zeros(1, 3, 4, 4)).stat().st_size > 0
    assert "no unit" in att.save_html(tmp_path / "a.html", torch.zeros(1, 3, 4, 4)).read_text()


def test_dollars_in_words_are_no_formulas(tmp_path):
    att = dataclasses.replace(attribution(1), unit="$ per _{pixel")
    image = torch.rand(1, 3, 12, 16)
    drawn, without = (
        Image.open(att.save_png(tmp_path / name, image, title=title)).convert("L")
        for name, title in (("a.png", "cost $5_{ and $6"), ("b.png", "cost 5_{ and 6"))
    )
    drawn.load()
    assert drawn.tobytes() != without.tobytes()  # the signs themselves are in the picture


def test_an_attribution_equals_itself_alone():
    att = attribution()
    assert att == att
    assert att != dataclasses.replace(att)


def test_what_does_not_fit_is_refused(tmp_path):
    att = attribution()
    with pytest.raises(ValueError, match="images must be"):
        att.save_html(tmp_path / "a.html", torch.rand(3, 3, 4, 4))
    with pytest.raises(ValueError, match="one caption an image"):
        att.save_html(tmp_path / "a.html", torch.rand(2, 3, 4, 4), captions=["a"])
    with pytest.raises(ValueError, match="index"):
        att.save_png(tmp_path / "a.png", torch.rand(2, 3, 4, 4), index=2)
    with pytest.raises(RuntimeError, match="no capacity"):
        _ = att.channel_bits
    with pytest.raises(RuntimeError, match="no history"):
        _ = att.converged
    vector = Attribution(map=torch.rand(2, 5), total_bits=torch.zeros(2), method="iba")
    with pytest.raises(ValueError, match="only maps"):
        vector.save_png(tmp_path / "a.png", torch.rand(2, 3, 4, 4))
