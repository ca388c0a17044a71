import itertools

import numpy as np
import pytest

from mmjax.data import masking, spans
from mmjax.data.masking import Policy
from mmjax.typing import TokenSpec

IMAGE = TokenSpec(name="image", kind="grid", max_tokens=32, width=4)
CODES = TokenSpec(name="codes", kind="grid", max_tokens=16, vocab_size=64)
TEXT = TokenSpec(
    name="text", kind="sequence", max_tokens=12, vocab_size=100, first_sentinel=80, num_sentinels=20
)
SPECS = (IMAGE, CODES, TEXT)


def make(*policies, inputs=SPECS, targets=SPECS, tokens=(20, 12), in_runs=True):
    return masking.resolve(policies or (Policy(),), inputs, targets, *tokens, in_runs)


def draws_of(plan, count, seed=0):
    return masking.draw(plan, [np.random.default_rng([seed, i]) for i in range(count)])


def masks_of(plan, lengths, count=500):
    return masking.mask(plan, draws_of(plan, count), np.tile(np.asarray(lengths), (count, 1)))


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("lengths", [(32, 16, 12), (32, 0, 5), (3, 2, 1), (0, 0, 4), (0, 0, 0)])
def test_budgets_are_filled_and_never_exceeded(alpha, lengths):
    plan = make(Policy(input_alpha=alpha, target_alpha=alpha))
    masks = masks_of(plan, lengths)
    assert (masks.input_BM.sum(axis=1) <= 20).all()
    assert (masks.target_BM.sum(axis=1) <= 12).all()
    assert (masks.input_BM <= lengths).all()
    assert (masks.target_BM[:, :2] <= lengths[:2] - masks.input_BM[:, :2]).all()
    assert (masks.target_BM[:, 2] <= 12).all()
    if lengths == (32, 16, 12):
        assert (masks.input_BM.sum(axis=1) == 20).all()
        assert (masks.target_BM.sum(axis=1) == 12).all()
    if sum(lengths):
        # Where all tokens fit into the inputs, some are left to predict.
        assert masks.target_BM.sum() > 0 or sum(lengths) < 3


def test_what_a_stream_cannot_take_goes_to_the_others():
    capacity = np.asarray([[2, 50, 1]])
    share = np.asarray([[0.9, 0.05, 0.05]])
    full = masking.refill(np.asarray([[2, 1, 1]]), share, capacity, np.asarray([30]))
    assert full.tolist() == [[2, 27, 1]]
    none = masking.refill(np.asarray([[2, 1, 0]]), np.asarray([[1.0, 0, 0]]), capacity, [30])
    assert none.tolist() == [[2, 1, 0]]  # nobody else has a share
    lots = masking.refill(np.asarray([[0, 0, 0]]), share, capacity, np.asarray([99]))
    assert lots.tolist() == [[2, 50, 1]]  # no room is left
    few = masking.refill(np.zeros((1, 3), int), np.full((1, 3), 1 / 3), capacity, [2])
    assert few.sum() == 2


def test_streams_with_alpha_zero_are_never_drawn():
    plan = make(
        Policy(input_alpha={"image": 5.0, "text": 1e-3}, target_alpha={"codes": 0.0, "*": 1.0})
    )
    masks = masks_of(plan, (3, 16, 12))
    assert not masks.input_BM[:, 1].any()
    assert not masks.target_BM[:, 1].any()
    assert masks.input_BM[:, 0].all()


def test_only_inputs_and_only_targets():
    plan = make(inputs=(IMAGE,), targets=(TEXT, CODES))
    assert plan.names == ("image", "text", "codes")
    masks = masks_of(plan, (32, 12, 16))
    assert (masks.input_BM == [20, 0, 0]).all()
    assert (masks.target_BM.sum(axis=1) == 12).all()
    assert not masks.keep["text"].any()


def test_expected_shares_are_those_of_the_dirichlet():
    alpha = np.asarray([4.0, 2.0, 1.0, 1.0])
    rng = np.random.default_rng(0)
    gamma = rng.standard_gamma(alpha, (4000, 4, 4))
    everything = np.ones((4000, 4), bool)
    _, budget = masking.allocate(gamma, everything, np.full((4000, 4), 10**6), np.full(4000, 999))
    assert (budget.sum(axis=1) == 999).all()
    np.testing.assert_allclose(budget.mean(axis=0) / 999, alpha / 8, atol=0.01)


@pytest.mark.parametrize(("alpha", "visible"), [(0.01, 3.0), (0.1, 9.7), (1.0, 18.2), (10.0, 19.0)])
def test_streams_seen_as_in_4m21(alpha, visible):
    """19 streams of 196 tokens, 256 slots: METHODS 1.6; without refill, as the authors do."""
    rng = np.random.default_rng(0)
    gamma = np.maximum(rng.standard_gamma(np.full((1000, 19, 19), alpha)), 1e-300)
    everything = np.ones((1000, 19), bool)
    _, budget = masking.allocate(gamma, everything, np.full((1000, 19), 999), np.full(1000, 256))
    assert (budget > 0).sum(axis=1).mean() == pytest.approx(visible, rel=0.12)


def test_one_input_shows_one_stream_and_predicts_the_others():
    plan = make(Policy(one_input=True, keep="all"))
    masks = masks_of(plan, (32, 16, 12), 900)
    shown = masks.input_BM > 0
    assert (shown.sum(axis=1) == 1).all()
    np.testing.assert_allclose(shown.mean(axis=0), 1 / 3, atol=0.06)
    assert not (masks.target_BM[shown]).any()
    assert (masks.input_BM[shown[:, 1], 1] == 16).all()  # all of the stream that fits
    # A sample with only one stream has nothing else to predict: it is masked in part.
    alone = masks_of(plan, (0, 0, 12))
    assert alone.input_BM[:, 2].all()
    assert alone.target_BM[:, 2].all()
    lonely = masks_of(plan, (32, 0, 0))
    assert (lonely.input_BM[:, 0] > 0).all()
    assert (lonely.target_BM[:, 0] > 0).all()


def test_draws_of_a_sample_do_not_depend_on_its_neighbours():
    plan = make(Policy(input_alpha=0.1), Policy(one_input=True), Policy(input_alpha=10.0))
    together = masks_of(plan, (32, 16, 12), 64)
    lengths = np.asarray([[32, 16, 12]])
    for i in [0, 13, 63]:
        draws = masking.draw(plan, [np.random.default_rng([0, i])])
        alone = masking.mask(plan, draws, lengths)
        np.testing.assert_array_equal(alone.input_BM[0], together.input_BM[i])
        np.testing.assert_array_equal(alone.target_BM[0], together.target_BM[i])
        np.testing.assert_array_equal(alone.keep["text"][0], together.keep["text"][i])


def test_policies_are_drawn_by_weight():
    policies = [Policy(weight=w, input_alpha={n: 1.0}) for n, w in
                [("image", 1.0), ("codes", 0.0), ("text", 3.0)]]  # fmt: skip
    masks = masks_of(make(*policies), (32, 16, 12), 2000)
    share = (masks.input_BM > 0).mean(axis=0)
    np.testing.assert_allclose(share, [0.25, 0.0, 0.75], atol=0.04)


def test_mean_of_targets_is_that_of_the_masks():
    plan = make(*[Policy(input_alpha=a, target_alpha=a) for a in (0.1, 1.0, 10.0)])
    mean = masks_of(plan, plan.lengths, 3000).target_BM.mean(axis=0)
    np.testing.assert_allclose(masking.mean_targets(plan), mean, rtol=0.1)


@pytest.mark.parametrize("keep", ["random", "all", "binary"])
def test_keep(keep):
    plan = make(Policy(keep=keep), tokens=(60, 12), inputs=(TEXT,), targets=(TEXT, CODES))
    masks = masks_of(plan, (12, 16), 600)
    kept = masks.keep["text"].sum(axis=1)
    if keep == "all":
        assert (kept == 12).all()
    elif keep == "binary":
        assert set(kept.tolist()) == {0, 12}
        assert 0.4 < (kept == 12).mean() < 0.6
    else:
        np.testing.assert_allclose(kept.mean(), 6, atol=0.5)
        assert len(set(kept.tolist())) == 13


# ------------------------------------------------------------------------------ spans


def merge(inputs, target, first_sentinel, count):
    """The original ids: each sentinel of the input is replaced by the run behind it."""
    is_sentinel = range(first_sentinel, first_sentinel + count).__contains__
    runs, name = {}, None
    for token in target:
        if is_sentinel(token):
            name = token
            runs[name] = []
        else:
            runs[name].append(token)
    out = []
    for token in inputs:
        out += runs[token] if is_sentinel(token) else [token]
    return out


def test_merging_input_and_target_gives_the_original_for_any_mask():
    length = 9
    keep = np.asarray(list(itertools.product([False, True], repeat=length)))
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, length + 1, len(keep))
    tokens = rng.integers(0, 80, keep.shape).astype(np.int32)
    keep &= np.arange(length) < lengths[:, None]
    shown = np.ones(len(keep), bool)
    split = spans.split_spans(tokens, keep, lengths, shown, 80)
    stop = np.cumsum(split.input_B)
    kept, masked, runs = spans.count_spans(keep, lengths)
    np.testing.assert_array_equal(split.input_B, kept + runs)
    np.testing.assert_array_equal(split.labels_B, masked + runs)
    for i, end in enumerate(stop):
        inputs = split.input_ids_N[end - split.input_B[i] : end].tolist()
        target = split.target_BT[i, : split.labels_B[i] + 1].tolist()
        assert target[-1] == 80 + runs[i]  # the closing sentinel
        assert merge(inputs, target, 80, 20) == tokens[i, : lengths[i]].tolist()
        opens = np.flatnonzero(split.sentinel_BT[i])
        assert [target[j] for j in opens] == list(range(80, 80 + runs[i]))


def test_without_budget_all_is_target_and_no_input():
    tokens = np.asarray([[5, 6, 7]], np.int32)
    split = spans.split_spans(
        tokens, np.zeros((1, 3), bool), np.asarray([3]), np.asarray([False]), 80
    )
    assert split.input_ids_N.tolist() == []
    assert split.target_BT[0].tolist() == [80, 5, 6, 7, 81]
    assert split.labels_B.tolist() == [4]


def test_keep_is_lowered_until_the_input_fits():
    rng = np.random.default_rng(0)
    uniform, prior = rng.random((400, 40)), rng.random(400)
    length, budget = rng.integers(1, 41, 400), rng.integers(0, 20, 400)
    keep = spans.fit_keep(uniform, prior, length, budget, 4)
    kept, masked, runs = spans.count_spans(keep, length)
    assert ((kept + runs <= budget) | (budget == 0)).all()
    assert not kept[budget == 0].any()
    assert (runs <= 4).all()
    assert (kept + masked == length).all()
    easy = spans.fit_keep(uniform, prior, length, np.full(400, 40), 40)
    np.testing.assert_array_equal(
        easy, (uniform < prior[:, None]) & (np.arange(40) < length[:, None])
    )
    one = spans.fit_keep(np.full((1, 40), 1e-12), np.ones(1), np.asarray([40]), np.asarray([1]), 9)
    assert not one.any()


def test_targets_start_where_the_budget_can_be_filled():
    tokens = np.tile(np.arange(2, 14, dtype=np.int32), (300, 1))
    keep = np.tile(np.asarray([0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0], bool), (300, 1))
    split = spans.split_spans(tokens, keep, np.full(300, 12), np.ones(300, bool), 80)
    assert split.labels_B[0] == 12
    uniform = (np.arange(300) + 0.5) / 300
    starts = spans.start_spans(split, np.full(300, 6), uniform)
    assert sorted(set(starts.tolist())) == [0, 2, 5]
    assert split.sentinel_BT[np.arange(300), starts].all()
    assert (split.labels_B - starts >= 6).all()
    assert (spans.start_spans(split, np.full(300, 12), uniform) == 0).all()


@pytest.mark.parametrize(
    ("rate", "mean_length"), [(0.15, 3.0), (0.5, 3.0), (0.15, 1.0), (1.0, 5.0)]
)
def test_noise_has_the_rate_and_the_runs_that_were_asked_for(rate, mean_length):
    length = np.asarray([0, 1, 2, 5, 40, 64] * 50)

    def counts(n):
        return spans.noise_counts(n, rate, mean_length, 99)

    uniform = np.random.default_rng(0).random((300, 2 * 66))
    keep = spans.noise(uniform, length, 64, counts)
    _, masked, runs = spans.count_spans(keep, length)
    assert list(zip(masked.tolist(), runs.tolist(), strict=True)) == [counts(n) for n in length]
    assert (masked[length == 40] == round(40 * rate)).all()
    if rate < 0.5:
        last = keep[length == 64][:, 63]
        assert last.any()
        assert not last.all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep": "some"}, "keep='some'"),
        ({"weight": -1.0}, "weight=-1"),
        ({"input_alpha": -0.1}, "input_alpha=-0.1"),
        ({"target_alpha": {"text": float("nan")}}, r"target_alpha\['text'\]=nan"),
    ],
)
def test_wrong_policies(fields, message):
    with pytest.raises(ValueError, match=message):
        Policy(**fields)
