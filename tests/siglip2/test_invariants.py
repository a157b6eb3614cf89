"""What holds exactly, whatever the weights: the nineteen of them, by their numbers in the docs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from recipe import (
    CFG,
    CHOICES,
    MASK_ID,
    PAD,
    TOWER,
    WEIGHTS,
    batch,
    decoder_weights,
    drawn,
    full_params,
    perturbed,
    target,
)  # fmt: skip

from siglip_ref.ops.elementary import subtree
from siglip_ref.siglip2 import RECIPE, Momentum, Weights, momentum_at, teacher_of
from siglip_ref.siglip2 import params as recipe_params
from siglip_ref.siglip2.captions import places_seen
from siglip_ref.siglip2.curation import choose
from siglip_ref.siglip2.objective import SIZE_WEIGHT, weights_of

Arrays = dict[str, Any]
CONTEXT = drawn((6, 5, 10), 1)
CAPTIONING = CHOICES.captioning
ONLY = {name: Weights(*(float(name == other) for other in Weights._fields)) for name in Weights._fields}


def captions(given: Any, weights: Arrays | None = None, context: Any = CONTEXT, **changes: Any) -> tuple[Any, Arrays]:
    """The caption loss of one task, and its gradients."""
    own = replace(CAPTIONING, **changes)
    loss, cache = RECIPE.caption_loss.forward(given, context, weights or decoder_weights(), own)
    d_context, d = RECIPE.caption_loss.backward(np.array(1.0), cache)
    return loss, d | {"context": d_context}


def logits(given: Any) -> Any:
    weights = decoder_weights()
    inputs = RECIPE.caption_inputs(given.labels, given.parallel, 0, MASK_ID)
    own = {name: value for name, value in weights.items() if not name.startswith("out/")}
    mask = places_seen(given.labels, given.parallel, CAPTIONING)
    states, _ = RECIPE.decoder.forward(inputs, CONTEXT, own, TOWER.heads, "tanh", 1e-6, mask, None)
    return states @ weights["out/kernel"] + weights["out/bias"]


def objective(weights: Weights, seen: Any = None, params: Arrays | None = None, teacher: Any = None) -> Any:
    params = params or full_params()
    wrt = ("images", "crops", "whole", "student_whole")
    return RECIPE.objective(params, seen or batch(), teacher or perturbed(params), CFG, CHOICES, weights, wrt)


def flows(grads: Arrays) -> set[str]:
    """The parts of the model that have a gradient at all; key biases, which have none but rounding, left out."""
    found = {name for name, value in grads.items() if np.any(value) and not name.endswith("k/bias")}
    parts = {name: "pool" if name.startswith("image/pool") else name.split("/")[0] for name in found}
    return {parts[name] if name != "mask/token" else "token" for name in found}


def test_1_a_fresh_output_layer_gives_the_logarithm_of_the_vocabulary() -> None:
    fresh = {name: 0 * value if name.startswith("out/") else value for name, value in decoder_weights().items()}
    loss, d = captions(target(3), fresh)
    assert loss == pytest.approx(np.log(CFG.vocabulary), rel=1e-15)
    assert {name for name, value in d.items() if np.any(value)} == {"out/kernel", "out/bias"}
    params = recipe_params.init(CFG, CHOICES)
    shares = 1 + 0.5 * 5 / 6 + 0.25  # the second task's prefix is all that one of six captions has
    assert objective(ONLY["captions"], params=params).loss == pytest.approx(shares * np.log(CFG.vocabulary), rel=1e-14)


def test_2_the_output_layer_s_gradient_sums_to_zero_over_words() -> None:
    for smoothing in (0.0, 0.1):
        _, d = captions(target(3), smoothing=smoothing)
        assert abs(d["out/bias"].sum()) <= 1e-15
        assert np.abs(d["out/kernel"].sum(1)).max() <= 1e-15


def test_3_a_word_changes_only_what_comes_after_it_and_nothing_in_parallel() -> None:
    given = target(3, parallel=[False] * 6)
    before = logits(given)
    for place in range(9):
        labels = given.labels.copy()
        labels[:, place] = labels[:, place] + 11
        moved = (logits(given._replace(labels=labels)) != before).any((0, 2))
        assert moved.tolist() == [other > place for other in range(9)]
    every = given._replace(parallel=np.ones(6, bool))
    assert (logits(every) == logits(every._replace(labels=labels))).all()


def test_4_only_words_that_are_read_have_a_gradient() -> None:
    given = target(3, parallel=[False] * 6)
    _, d = captions(given)
    read = set(given.labels[:, :-1][given.counted[:, 1:]]) | {CAPTIONING.start}
    assert set(np.flatnonzero(d["token"].any(1))) == read
    assert not d["token"][1].any()  # the end, behind which nothing counts
    _, d = captions(given._replace(parallel=np.ones(6, bool)))
    assert np.flatnonzero(d["token"].any(1)).tolist() == [MASK_ID]


def test_5_positions_behind_the_last_word_are_seen_in_parallel_only() -> None:
    short = target(3, lengths=(2,), parallel=[False])
    context = CONTEXT[:1]
    assert np.flatnonzero(captions(short, context=context)[1]["position"].any(1)).tolist() == [0, 1]
    every = short._replace(parallel=np.array([True]))
    assert captions(every, context=context)[1]["position"].any(1).all()


def test_6_and_13_gradients_flow_where_they_should_and_nowhere_else() -> None:
    table = {
        "sigmoid": {"images", "image", "pool", "text", "log_scale", "bias"},
        "captions": {"images", "image", "decoder"},
        "local": {"crops", "image", "pool", "local"},
        "mask": {"student_whole", "image", "mask", "token"},
    }
    assert {name: flows(objective(weights).grads) for name, weights in ONLY.items()} == table
    both = objective(Weights(1.0, 1.0, 1.0, 1.0)).grads
    assert flows(both) == set().union(*table.values())
    for name, value in both.items():
        if name.startswith("image/") and name.endswith("k/bias"):
            assert np.abs(value).max() <= 1e-15 * np.abs(both[name.replace("k/bias", "q/bias")]).max() * 10


def test_7_the_loss_does_not_depend_on_what_it_should_not() -> None:
    given, weights = target(3), decoder_weights()
    loss, _ = captions(given)
    shifted = weights | {"out/bias": weights["out/bias"] + 0.75}
    assert captions(given, shifted)[0] == pytest.approx(loss, rel=1e-14)
    order = np.array([3, 0, 5, 1, 4, 2])
    turned = type(given)(*(part[order] for part in given))
    assert captions(turned, context=CONTEXT[order])[0] == pytest.approx(loss, rel=1e-14)
    longer = weights | {"position": np.concatenate([weights["position"], drawn((3, 12), 8)])}
    for parallel, same in ((False, True), (True, False)):
        whole = given._replace(parallel=np.full(6, parallel))
        wide = ((0, 0), (0, 3))
        padded = whole._replace(labels=np.pad(whole.labels, wide), counted=np.pad(whole.counted, wide))
        one, other = captions(whole, longer)[0], captions(padded, longer)[0]
        assert (abs(one - other) <= 1e-14 * one) == same


def test_8_an_example_without_a_word_that_counts_adds_nothing_and_counts_all_the_same() -> None:
    given = target(3)
    silent = given._replace(counted=given.counted & (np.arange(6) != 2)[:, None])
    loss, d = captions(silent)
    assert not d["context"][2].any()
    rest = np.arange(6) != 2
    alone, d_alone = captions(type(given)(*(part[rest] for part in given)), context=CONTEXT[rest])
    assert loss == pytest.approx(alone * 5 / 6, rel=1e-14)
    assert np.allclose(d["out/kernel"], d_alone["out/kernel"] * 5 / 6, rtol=1e-12, atol=1e-15)


def _scores(key: int) -> Any:
    return drawn((4, 3, 11), key)


def _cross_entropy(scores: Any, said: Any, student: float = 0.1) -> tuple[Any, Any]:
    out, cache = RECIPE.cross_entropy.forward(scores, said, student)
    return out, RECIPE.cross_entropy.backward(np.ones(out.shape), cache)


def test_9_the_least_cross_entropy_is_the_teacher_s_entropy() -> None:
    said = RECIPE.centred(_scores(1), drawn((11,), 2, 0.1), 0.07)
    loss, d = _cross_entropy(_scores(3), said)
    entropy = -(said * np.log(said)).sum(-1)
    assert np.abs(d.sum(-1)).max() <= 1e-15 / 0.1 * 11
    assert (loss >= entropy).all()
    least, d = _cross_entropy(0.1 * np.log(said), said)
    assert np.allclose(least, entropy, rtol=1e-13) and np.abs(d).max() <= 1e-13


def test_10_the_length_of_a_prototype_changes_nothing_and_the_last_layer_turns_only() -> None:
    weights, x = subtree(full_params(), "local"), drawn((5, 10), 4)
    out, cache = RECIPE.head.forward(x, weights, "erf", 1e-12)
    _, d = RECIPE.head.backward(drawn(out.shape, 5), cache)
    along = (d["prototypes/direction"] * weights["prototypes/direction"]).sum(-1)
    assert np.abs(along).max() <= 1e-14
    kernel, bias = "layer2/kernel", "layer2/bias"
    terms = (d[kernel] * weights[kernel]).sum(), (d[bias] * weights[bias]).sum()
    assert abs(sum(terms)) <= 1e-14 * max(map(abs, terms)) * 10
    longer = weights | {"prototypes/direction": 4 * weights["prototypes/direction"]}
    assert (RECIPE.head.forward(x, longer, "erf", 1e-12)[0] == out).all()


def test_11_a_constant_in_a_row_of_scores_changes_nothing() -> None:
    centre, said = drawn((11,), 2, 0.1), RECIPE.centred(_scores(1), drawn((11,), 2, 0.1), 0.07)
    for same in (RECIPE.centred(_scores(1), centre + 0.5, 0.07), RECIPE.centred(_scores(1) + 0.5, centre, 0.07)):
        assert np.allclose(said, same, rtol=1e-12)
    loss, d = _cross_entropy(_scores(3), said)
    other, d_other = _cross_entropy(_scores(3) + 0.5, said)
    assert np.allclose(loss, other, rtol=1e-13) and np.allclose(d, d_other, rtol=1e-11, atol=1e-14)


def test_12_a_student_that_is_its_teacher_and_sees_the_same_has_no_gradient() -> None:
    params = full_params()
    teacher = recipe_params.born(params, CHOICES)
    own = replace(CHOICES.local, teacher_temperature=CHOICES.local.student_temperature)
    seen = batch()._replace(crops=batch().whole[:, None])
    found = RECIPE.objective(params, seen, teacher, CFG, replace(CHOICES, local=own), ONLY["local"])
    assert max(np.abs(value).max() for value in found.grads.values()) <= 1e-13
    assert found.loss > 0
    moved = objective(ONLY["local"]), objective(ONLY["mask"])  # the teacher's own parameters: no key names them
    assert all(found.grads.keys() == params.keys() | {"images", "crops", "whole", "student_whole"} for found in moved)
    assert not any(np.any(found.grads["whole"]) for found in moved)


def test_14_the_student_s_hidden_pixels_do_not_matter() -> None:
    seen = batch()
    found = objective(ONLY["mask"], seen)
    hidden = np.repeat(np.repeat(seen.masked.reshape(6, 3, 7), 4, 1), 4, 2)  # (B, height, width)
    assert not found.grads["student_whole"][hidden].any() and found.grads["student_whole"][2:][~hidden[2:]].all()
    changed = seen._replace(student_whole=np.where(hidden[..., None], 9.0, seen.student_whole))
    assert objective(ONLY["mask"], changed).loss == found.loss
    d = found.grads
    whole = np.abs(d["image/position"]).sum()
    assert np.abs(d["image/position"].sum(0) - d["image/patch/bias"] - d["mask/token"]).max() <= 1e-15 * whole
    scores, cache = RECIPE.cross_entropy.forward(drawn((6, 21, 11), 1), np.full((6, 21, 11), 1 / 11), 0.1)
    d_out = RECIPE.average.backward(np.array(1.0), RECIPE.average.forward(scores, seen.masked, "example")[1])
    assert not RECIPE.cross_entropy.backward(d_out, cache)[~seen.masked].any()


def test_15_hidden_patches_differ_by_their_position() -> None:
    params, masked = full_params(), np.ones((1, 21), bool)
    tokens, _ = RECIPE.view.forward(
        drawn((1, *CFG.image_size, 3), 1), subtree(params, "image"), CFG, CFG.conventions, params["mask/token"], masked
    )
    assert np.abs(tokens - tokens[:, :1]).max() > 0.1
    nowhere = {name: 0 * value if name == "position" else value for name, value in subtree(params, "image").items()}
    alike, _ = RECIPE.view.forward(
        drawn((1, *CFG.image_size, 3), 1), nowhere, CFG, CFG.conventions, params["mask/token"], masked
    )
    assert np.abs(alike - alike[:, :1]).max() <= 1e-14


def test_16_the_running_means() -> None:
    student = full_params()
    teacher, moved = teacher_of(student), teacher_of({name: value + 1 for name, value in student.items()})
    assert teacher.keys() == {
        name for name in student if name.startswith(("image/", "local/", "mask/")) and name != "mask/token"
    }
    step = RECIPE.ema_step
    assert all((step(teacher, moved, 0.0)[name] == moved[name]).all() for name in teacher)
    assert all((step(teacher, moved, 1.0)[name] == teacher[name]).all() for name in teacher)
    first = step(teacher, moved, 0.996)
    assert all(np.allclose(first[name], teacher[name] + 0.004 * (moved[name] - teacher[name])) for name in teacher)
    assert [momentum_at(k, Momentum(0.996, "cosine", 10)) for k in (0, 5, 9)] == pytest.approx(
        [0.996, 0.998, 0.999902], abs=1e-6
    )
    assert momentum_at(9, Momentum(0.996, "cosine to one", 10)) == 1.0
    centre, rows = np.zeros(4), drawn((5, 4), 1)
    for _ in range(3):
        centre = RECIPE.centre_step(centre, rows.sum(0), len(rows), 0.9)
    assert np.allclose(centre, (1 - 0.9**3) * rows.mean(0), rtol=1e-14)
    narrow = RECIPE.centre_step(np.zeros(4, np.float32), rows.sum(0).astype(np.float32), 5, 0.996)
    assert narrow.dtype == np.float32 and np.allclose(narrow, 0.004 * rows.mean(0), rtol=1e-6)


def test_17_ranks_with_equal_shards_give_the_single_process_s_numbers() -> None:
    whole, params = batch(), full_params()
    teacher, weights = perturbed(params), WEIGHTS._replace(sigmoid=0.0)
    shards = [
        whole._replace(
            tasks=[type(task)(*(part[rows] for part in task)) for task in whole.tasks],
            **{name: getattr(whole, name)[rows] for name in whole._fields if name != "tasks"},
        )
        for rows in (slice(0, 3), slice(3, 6))
    ]
    one = objective(weights, whole, params, teacher)
    parts = [objective(weights, shard, params, teacher) for shard in shards]
    assert sum(part.loss for part in parts) / 2 == pytest.approx(one.loss, rel=1e-13)
    for name in params:
        mean = sum(part.grads[name] for part in parts) / 2
        assert np.abs(mean - one.grads[name]).max() <= 1e-13 * max(np.abs(one.grads[name]).max(), 1e-3), name
    for head, (total, count) in one.said.items():
        shares = [part.said[head] for part in parts]
        assert sum(number for _, number in shares) == count
        assert np.allclose(sum(share for share, _ in shares), total, rtol=1e-12)


def _embeddings(key: int, pairs: int = 12) -> tuple[Any, Any]:
    rows = drawn((2, pairs, 5), key)
    return tuple(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def test_18_scores_of_curation_add_up_to_the_difference_of_losses() -> None:
    learner, better = (*_embeddings(1), np.log(10.0), -6.0), (*_embeddings(2), np.log(20.0), -7.0)
    scores = RECIPE.learnability(learner, better)
    assert (RECIPE.learnability(better, learner) == -scores).all()
    noise = -np.log(-np.log(np.random.default_rng(3).random((3, 12))))
    for first in ("uniform", "diagonal"):
        for divided in (False, True):
            chosen = choose(scores, 6, noise, first, divided)
            assert len(set(chosen)) == 6
            own = [(x[chosen], y[chosen], t, b) for x, y, t, b in (learner, better)]
            losses = [RECIPE.sigmoid_loss(*given).loss for given in own]
            assert scores[np.ix_(chosen, chosen)].sum() / 6 == pytest.approx(losses[0] - losses[1], rel=1e-12)
            order = np.random.default_rng(4).permutation(12)
            turned = choose(scores[np.ix_(order, order)], 6, noise[:, order], first, divided)
            assert (order[turned] == chosen).all()
    same = choose(0 * scores, 6, noise, "uniform", False)
    wanted: list[int] = []
    for gumbel in noise:
        wanted += [i for i in np.argsort(-gumbel) if i not in wanted][:2]
    assert same.tolist() == wanted


def test_19_a_bottleneck_may_be_turned() -> None:
    tokens, table, widen = np.array([[3, 1], [3, 0]]), drawn((5, 3), 1), drawn((3, 7), 2)
    turn = drawn((3, 3), 3)
    out, cache = RECIPE.bottleneck.forward(tokens, table, widen)
    d_table, d_widen = RECIPE.bottleneck.backward(drawn(out.shape, 4), cache)
    assert np.allclose(
        out, RECIPE.bottleneck.forward(tokens, table @ turn, np.linalg.solve(turn, widen))[0], rtol=1e-12
    )
    assert (d_table * table).sum() == pytest.approx((d_widen * widen).sum(), rel=1e-13)
    assert np.allclose(out, (table @ widen)[tokens], rtol=1e-13)
    assert not d_table[[2, 4]].any()


def test_the_weights_of_the_losses_are_the_published_ones() -> None:
    assert {size: weights_of(size, "distilled").mask for size in SIZE_WEIGHT} == {
        "B": 0.0625, "L": 0.125, "So400m": 0.25, "g-opt": 0.125,
    }  # fmt: skip
    assert weights_of("B", "start") == weights_of("B", "naflex") == Weights(1, 1, 0, 0)
    assert weights_of("B", "curated") == Weights(1, 0, 0, 0)


def test_padding_may_be_hidden_but_never_the_first_place() -> None:
    given = target(3, lengths=(2, 5), parallel=[False, True])
    own = replace(CAPTIONING, pad_keys="hidden")
    seen = places_seen(given.labels, given.parallel, own)
    assert seen[0, 0].tolist() == [[True, False] + [False] * 7] + [[True, True] + [False] * 7] * 8
    assert seen[1, 0].tolist() == [[True] * 5 + [False] * 4] * 9
    nothing = places_seen(np.full((1, 9), PAD), np.array([True]), own)
    assert nothing[0, 0].tolist() == [[True] + [False] * 8] * 9
