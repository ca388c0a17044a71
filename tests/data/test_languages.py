"""Shares of languages are found in captions too short to tell one by one."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.data import languages

SPOKEN = {
    "en": "a {} dog on the grass|two {} cars in the street|the {} house by a lake",
    "de": "ein {} Hund auf dem Gras|zwei {} Autos im Hof|das {} Haus am See",
    "fr": "un chien {} sur l'herbe|deux voitures {} dans la rue|la maison {} du lac",
    "ru": "\u0441\u043e\u0431\u0430\u043a\u0430 {} \u0432 \u0434\u043e\u043c\u0435",
}


def texts(shares: dict[str, int]) -> list[str]:
    made = []
    for name, count in shares.items():
        kinds = SPOKEN[name].split("|")
        made += [kinds[i % len(kinds)].format(i) for i in range(count)]
    return np.random.default_rng(0).permutation(made).tolist()


def test_shares_are_near_the_truth():
    true = {"en": 200, "de": 100, "fr": 60, "ru": 40}
    found = languages.shares(texts(true))
    assert list(found)[:4] == list(true)
    for name, count in true.items():
        assert found[name] == pytest.approx(count / 400, abs=0.04)


def test_one_language_is_one_however_short_its_texts():
    found = languages.shares([f"{a} {b}" for a in ("red", "old", "new") for b in range(40)])
    assert max(found.values()) > 0.9
    assert languages.shares(texts({"fr": 50})) == pytest.approx({"fr": 1.0}, abs=0.02)


def test_few_texts_and_texts_without_letters_say_nothing():
    assert languages.shares(texts({"en": 19})) == {}
    assert languages.shares(["12 + 4", "", "!"] * 100) == {}
