"""The gallery has every method's picture, its page says how each was made."""

from __future__ import annotations

import dataclasses
import importlib
import io
from pathlib import Path

import pytest
from PIL import Image

from sat.methods import METHODS


@pytest.fixture
def gallery(monkeypatch):
    """The module that makes the gallery."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "tools"))
    return importlib.import_module("gallery")


def test_every_method_has_a_picture_and_no_other_has(gallery):
    pictures = {path.stem for path in gallery.PICTURES.iterdir()}
    assert pictures == set(METHODS), "python tools/gallery.py METHOD (--quick)"


def test_the_page_is_up_to_date(gallery):
    assert gallery.PAGE.read_text() == gallery.page(METHODS.values()), "python tools/gallery.py"


def test_a_method_without_a_picture_is_named(gallery):
    new = dataclasses.replace(METHODS["s4d"], slug="new_one")
    with pytest.raises(ValueError, match="'new_one' has no picture: python tools/gallery.py new_o"):
        gallery.page([*METHODS.values(), new])


@pytest.mark.parametrize("slug", METHODS)
def test_pictures_are_small_and_say_their_command(gallery, slug):
    path = gallery.PICTURES / f"{slug}.png"
    assert path.stat().st_size <= 80_000
    with Image.open(path) as picture:
        assert 400 <= picture.width <= 960  # ten inches: wider, and the page makes words too small
        assert picture.height <= 960
        assert len(picture.getcolors(257) or ()) > 3
    assert gallery.command_of(slug) in {gallery.command(slug, quick=q) for q in (False, True)}


def test_shrink_scales_to_96_dots_and_keeps_colours(gallery):
    drawn = Image.new("RGB", (1500, 750), "white")
    drawn.paste((200, 30, 30), (300, 150, 600, 450))
    data = gallery.shrink(drawn, "sat run x")
    small = Image.open(io.BytesIO(data))
    assert small.size == (960, 480) and small.info["Command"] == "sat run x"
    assert small.convert("RGB").getpixel((288, 192)) == (200, 30, 30)
    assert small.convert("RGB").getpixel((10, 10)) == (255, 255, 255)


def test_what_does_not_fit_is_refused(gallery, monkeypatch):
    monkeypatch.setattr(gallery, "MOST_BYTES", 200)
    noise = Image.effect_noise((300, 300), 80)
    with pytest.raises(ValueError, match="a picture of 192 x 192 takes .* bytes: draw less in it"):
        gallery.shrink(noise, "sat run x")


def test_a_picture_too_wide_to_read_is_refused(gallery):
    with pytest.raises(ValueError, match="a figure 14 inches wide: at most 10, or its words"):
        gallery.shrink(Image.new("RGB", (2100, 600)), "sat run x")


def test_one_of_several_pictures_must_be_chosen(gallery, monkeypatch, tmp_path):
    def run(line, **_):
        for name in ("one", "two"):
            Image.new("RGB", (900, 300)).save(f"{line[-1]}/{line[4]}-{name}.png")
        return gallery.subprocess.CompletedProcess(line, 0)

    monkeypatch.setattr(gallery.subprocess, "run", run)
    monkeypatch.setattr(gallery, "PICTURES", tmp_path)
    monkeypatch.setattr(gallery, "DOCS", tmp_path)
    with pytest.raises(ValueError, match=r"draws \['one', 'two'\]: name one in CHOSEN"):
        gallery.make("new_one", quick=True)
    monkeypatch.setitem(gallery.CHOSEN, "new_one", "two")
    with Image.open(gallery.make("new_one", quick=True)) as made:
        assert made.info["Command"] == "sat run new_one --device host --quick --figures out"
