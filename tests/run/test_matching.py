"""Names and shapes of a run's parameters matched to those of another model."""

from __future__ import annotations

import pytest

from mmjax.experiment import Init
from mmjax.run import matching

BLOCK = {"attention/query": (8, 2, 4), "mlp/up": (8, 16), "mlp/down": (16, 8)}
SOURCE = {f"enc/blocks/{n}/{leaf}": shape for n in range(12) for leaf, shape in BLOCK.items()}
SOURCE |= {"enc/norm/scale": (8,), "embed/text/table": (64, 8), "heads/old/kernel": (8, 3)}
RENAMED = {name.replace("enc/", "main/"): shape for name, shape in SOURCE.items()}
EXPERTS = {name: (4, *shape) if "/mlp/" in name else shape for name, shape in SOURCE.items()}
DIMS = {name: 0 for name in SOURCE if "/mlp/" in name}


def match(target, dims=None, **fields) -> matching.Match:
    return matching.match(Init(path="runs/a@8", **fields), SOURCE, target, dims or {})


def test_all_of_an_equal_model():
    found = match(SOURCE)
    assert found.taken == {name: name for name in SOURCE}
    assert found[1:] == ({}, [], [])


def test_what_is_selected():
    found = match(SOURCE, select=("enc/**",), allow_new=("embed/*", "heads/*"))
    assert all(name.startswith("enc/") for name in found.taken)
    assert found.fresh == found.unused == ["embed/text/table", "heads/old/kernel"]
    assert len(found.taken) == 37


def test_the_first_pattern_that_matches_renames():
    pairs = (
        ("enc/blocks/*/mlp/*", "main/blocks/*/ffn/*"),
        ("enc/**", "main/**"),
        ("enc/norm/*", "never"),
    )
    rename = lambda name: matching.renamed(name, pairs)
    assert rename("enc/blocks/11/mlp/up") == "main/blocks/11/ffn/up"
    assert rename("enc/norm/scale") == "main/norm/scale"
    assert rename("dec/norm/scale") == "dec/norm/scale"
    assert matching.renamed("a.b/c", (("a.b/*", "*/a\\1"),)) == "c/a\\1"
    assert matching.renamed("axb/c", (("a.b/*", "*"),)) == "axb/c"
    found = match(RENAMED, rename=(("enc/*", "main/*"),))
    assert found.taken["main/blocks/3/mlp/up"] == "enc/blocks/3/mlp/up"
    assert not found.fresh
    assert not found.unused


def test_what_is_missing_is_refused_unless_it_may_be_new():
    target = {**SOURCE, "heads/new/kernel": (8, 5), **{f"dec/blocks/{n}/x": (1,) for n in range(9)}}
    said = (
        r"Init runs/a@8: has no heads/new/kernel: 1, dec/blocks/\*/x: 9\. If they shall be fresh,"
        r" write allow_new=\('no/such', 'heads/new/kernel', 'dec/blocks/\*/x'\);"
    )
    with pytest.raises(ValueError, match=said):
        match(target, allow_new=("no/such",))
    with pytest.raises(ValueError, match=r"has no dec/blocks/\*/x: 9\."):
        match(target, allow_new=("heads/*",))
    found = match(target, allow_new=("heads/new/kernel", "dec/blocks/*/x"))
    assert matching.by_pattern(found.fresh) == {"heads/new/kernel": 1, "dec/blocks/*/x": 9}


def test_a_dense_layer_becomes_each_expert():
    found = match(EXPERTS, DIMS, dense_to_experts=("enc/blocks/*/mlp/*",))
    assert found.copied == dict.fromkeys(DIMS, (0, 4))
    assert found.taken == {name: name for name in SOURCE}
    # Where the source has experts already they are taken as they are.
    init = Init(path="runs/a", dense_to_experts=("enc/**",))
    assert matching.match(init, EXPERTS, EXPERTS, DIMS).copied == {}


def test_other_shapes_are_refused():
    said = (
        r"Init runs/a@8: enc/blocks/\*/mlp/up is \(8, 16\) there and \(4, 8, 16\) here: 12,"
        r" enc/blocks/\*/mlp/down is \(16, 8\) there and .* `dense_to_experts`.*`allow_new`"
    )
    with pytest.raises(ValueError, match=said):
        match(EXPERTS, DIMS)
    narrow = {name: (*s[:-1], 2) if name in DIMS else s for name, s in EXPERTS.items()}
    with pytest.raises(ValueError, match=r"up is \(8, 16\) there and \(4, 8, 2\) here: 12"):
        match(narrow, DIMS, dense_to_experts=("**",))
    wide = {**SOURCE, "embed/text/table": (128, 8)}
    with pytest.raises(ValueError, match=r"table is \(64, 8\) there and \(128, 8\)") as caught:
        match(wide)
    assert "experts" not in str(caught.value)
    said = r"'main/\*\*', which matches no parameter of experts; there is enc/blocks/\*/mlp/up: 12"
    with pytest.raises(ValueError, match=said):
        match(EXPERTS, DIMS, dense_to_experts=("main/**",))


def test_nothing_in_common_is_refused_whatever_may_be_new():
    said = (
        r"Init runs/a@8: none of its parameters has a place here\. It has"
        r" enc/blocks/\*/attention/query: 12, .*that is nothing; this model has main/"
    )
    with pytest.raises(ValueError, match=said):
        match(RENAMED, select=("main/**",), allow_new=("**",))


def test_two_parameters_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"enc/blocks/0/mlp/up and enc/blocks/1/mlp/up are both x"):
        match(SOURCE, rename=(("enc/blocks/*/mlp/up", "x"),))


def test_long_lists_end():
    counts = matching.by_pattern(f"heads/{n:02}x/kernel" for n in range(20))
    assert matching.listed(counts).endswith("heads/11x/kernel: 1, and 8 more patterns")
