"""Captions of ToyWorld in four languages, at three levels of detail.

Level 0 counts the shapes, 1 gives each its colour, 2 also its size, and says where it stands.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from mmjax.demo.toyworld_scene import COLOURS, Scene

__all__ = ["LANGUAGES", "caption"]

LANGUAGES = ("en", "de", "fr", "es")
RELATIONS = ("left", "right", "front", "behind")

# Of each shape: singular, plural, and m or f.
_NOUNS = {
    "en": (
        ("sphere", "spheres", "m"),
        ("cube", "cubes", "m"),
        ("cylinder", "cylinders", "m"),
        ("cone", "cones", "m"),
    ),
    "de": (
        ("Kugel", "Kugeln", "f"),
        ("W\u00fcrfel", "W\u00fcrfel", "m"),
        ("Zylinder", "Zylinder", "m"),
        ("Kegel", "Kegel", "m"),
    ),
    "fr": (
        ("sph\u00e8re", "sph\u00e8res", "f"),
        ("cube", "cubes", "m"),
        ("cylindre", "cylindres", "m"),
        ("c\u00f4ne", "c\u00f4nes", "m"),
    ),
    "es": (
        ("esfera", "esferas", "f"),
        ("cubo", "cubos", "m"),
        ("cilindro", "cilindros", "m"),
        ("cono", "conos", "m"),
    ),
}
# Masculine and feminine; German has stems, which take an ending.
_COLOURS = {
    "en": {colour: (colour, colour) for colour in COLOURS},
    "de": {
        "red": ("rot", "rot"),
        "orange": ("orangefarben", "orangefarben"),
        "yellow": ("gelb", "gelb"),
        "green": ("gr\u00fcn", "gr\u00fcn"),
        "turquoise": ("t\u00fcrkisfarben", "t\u00fcrkisfarben"),
        "blue": ("blau", "blau"),
        "purple": ("violett", "violett"),
        "pink": ("rosafarben", "rosafarben"),
    },
    "fr": {
        "red": ("rouge", "rouge"),
        "orange": ("orange", "orange"),
        "yellow": ("jaune", "jaune"),
        "green": ("vert", "verte"),
        "turquoise": ("turquoise", "turquoise"),
        "blue": ("bleu", "bleue"),
        "purple": ("violet", "violette"),
        "pink": ("rose", "rose"),
    },
    "es": {
        "red": ("rojo", "roja"),
        "orange": ("naranja", "naranja"),
        "yellow": ("amarillo", "amarilla"),
        "green": ("verde", "verde"),
        "turquoise": ("turquesa", "turquesa"),
        "blue": ("azul", "azul"),
        "purple": ("morado", "morada"),
        "pink": ("rosa", "rosa"),
    },
}
_SIZES = {
    "en": (("small", "small"), ("large", "large")),
    "de": (("klein", "klein"), ("gro\u00df", "gro\u00df")),
    "fr": (("petit", "petite"), ("grand", "grande")),
    "es": (("peque\u00f1o", "peque\u00f1a"), ("grande", "grande")),
}
_RELATIONS = {
    "en": ("left of", "right of", "in front of", "behind"),
    "de": ("links von", "rechts von", "vor", "hinter"),
    "fr": ("\u00e0 gauche de", "\u00e0 droite de", "devant", "derri\u00e8re"),
    "es": ("a la izquierda de", "a la derecha de", "delante de", "detr\u00e1s de"),
}
_AND = {"en": "and", "de": "und", "fr": "et", "es": "y"}
_ARTICLES = {"en": ("a", "a"), "de": ("ein", "eine"), "fr": ("un", "une"), "es": ("un", "una")}
_NUMBERS = {
    "en": ("two", "three"),
    "de": ("zwei", "drei"),
    "fr": ("deux", "trois"),
    "es": ("dos", "tres"),
}


def caption(scene: Scene, language: str, level: int) -> str:
    """What a scene shows, without a full stop; facts that it states are those of `Scene`."""
    bodies = scene.bodies
    if level == 0:
        return _joined([_counted(shape, n, language) for shape, n in _counts(scene)], language)
    if level == 1:
        return _joined([_one(language, b.shape, b.colour) for b in bodies], language)
    order = sorted(range(len(bodies)), key=lambda i: scene.whims[i])
    text = _of(scene, order[0], language)
    for place, (before, now) in enumerate(itertools.pairwise(order)):
        relation = relation_of(scene, before, now)
        link = f", {_which(language, bodies[before].shape)} " if place else " "
        end = " liegt" if bodies[before].shape == 0 else " steht"
        text += link + _placed(scene, relation, now, language)
        text += end if place and language == "de" else ""
    return text


def relation_of(scene: Scene, i: int, j: int) -> int:
    """How body i stands to body j, of RELATIONS; where two hold, one of them by chance."""
    beside = 0 if scene.left_of(i, j) else 1
    if scene.whims[3 + i] < 0.5:
        if scene.in_front_of(i, j):
            return 2
        if scene.in_front_of(j, i):
            return 3
    return beside


def _counts(scene: Scene) -> list[tuple[int, int]]:
    """(shape, how many), in order of first occurrence from the left."""
    shapes = [body.shape for body in scene.bodies]
    return [(shape, shapes.count(shape)) for shape in dict.fromkeys(shapes)]


def _counted(shape: int, count: int, language: str) -> str:
    singular, plural, _ = _NOUNS[language][shape]
    if count > 1:
        return f"{_NUMBERS[language][count - 2]} {plural}"
    return f"{_article(language, shape)} {singular}"


def _joined(parts: Sequence[str], language: str) -> str:
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} {_AND[language]} {parts[-1]}"


def _gender(language: str, shape: int) -> int:
    return int(_NOUNS[language][shape][2] == "f")


def _article(language: str, shape: int, colour: int | None = None, size: int | None = None) -> str:
    if language == "en" and size is None and colour == COLOURS.index("orange"):
        return "an"
    return _ARTICLES[language][_gender(language, shape)]


def _one(
    language: str, shape: int, colour: int, size: int | None = None, is_dative: bool = False
) -> str:
    """A noun with its article and adjectives; German also in the dative."""
    gender = _gender(language, shape)
    noun = _NOUNS[language][shape][0]
    tint = _COLOURS[language][COLOURS[colour]][gender]
    big = "" if size is None else _SIZES[language][size][gender]
    article = _article(language, shape, colour, size)
    if language == "de":
        ending = "en" if is_dative else "er" if gender == 0 else "e"
        article += (("em", "r")[gender]) if is_dative else ""
        words = [article, *(f"{word}{ending}" for word in (big, tint) if word), noun]
    elif language == "fr":
        words = [article, big, noun, tint]
    elif language == "es":
        words = [article, noun, tint, big]
    else:
        words = [article, big, tint, noun]
    return " ".join(word for word in words if word)


def _of(scene: Scene, i: int, language: str, is_dative: bool = False) -> str:
    body = scene.bodies[i]
    return _one(language, body.shape, body.colour, body.size, is_dative)


def _placed(scene: Scene, relation: int, other: int, language: str) -> str:
    """`left of a large blue cube`."""
    what, where = _of(scene, other, language, is_dative=True), _RELATIONS[language][relation]
    if language == "fr" and where.endswith(" de"):
        return f"{where[:-2]}d'{what}"
    return f"{where} {what}"


def _which(language: str, shape: int) -> str:
    """The start of a relative clause about a noun."""
    if language == "de":
        return ("der", "die")[_gender("de", shape)]
    return {"en": "which is", "fr": "qui est", "es": "que est\u00e1"}[language]
