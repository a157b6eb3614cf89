"""What is held out is never shown; batches depend on the seed and their number alone."""

import numpy as np
from training_cases import alone, mini

from siglip_ref.training.data.batches import Batches
from siglip_ref.training.data.captioned import NOISE, STILL
from siglip_ref.training.data.shapes import ALL
from siglip_ref.training.data.sources import open_data
from siglip_ref.use.tokenizer import byte_tokenizer


def captions(part):
    return {part.caption(number, np.array(STILL)) for number in range(part.count)}


def test_held_out_combinations_are_not_trained_on_but_each_of_their_words_is():
    data = open_data("shapes")
    train, test = captions(data.train), captions(data.test)
    assert len(train) + len(test) == len(ALL) and not train & test
    assert {word for caption in test for word in caption.split()} <= {word for c in train for word in c.split()}


def test_every_shape_is_drawn_where_and_as_its_caption_says():
    data = open_data("shapes")
    for part in (data.train, data.test):
        for number in range(0, part.count, 7):
            picture = part.picture(number, np.array(STILL)).astype(int)
            words = part.caption(number, np.array(STILL)).split()
            grey = picture[0, 0]
            rows, columns = np.nonzero(np.abs(picture - grey).sum(2) > 60)
            assert abs(rows.mean() / 32 - {"top": 0.25, "middle": 0.5, "bottom": 0.75}[words[-2]]) < 0.1, words
            assert abs(columns.mean() / 32 - {"left": 0.25, "centre": 0.5, "right": 0.75}[words[-1]]) < 0.1, words


def test_digits_are_split_and_none_is_in_both_parts():
    data = open_data("digits")
    assert (data.train.count, data.test.count) == (1437, 360)
    pictures = [
        {part.picture(n, np.array(STILL)).tobytes() for n in range(part.count)} for part in (data.train, data.test)
    ]
    assert not pictures[0] & pictures[1]


def batches(seed=3, shuffled=0.0):
    return Batches(open_data("digits").train, lambda number, noise: noise, byte_tokenizer(32), 100, seed, shuffled)


def test_batches_go_through_everything_once_a_round():
    one = batches()
    numbers = np.concatenate([one.rows(k)[0] for k in range(30)])
    assert sorted(numbers[:1437]) == list(range(1437)) and sorted(numbers[1437 : 2 * 1437]) == list(range(1437))
    again = batches()
    assert np.array_equal(again.rows(17)[0], one.rows(17)[0]) and np.array_equal(again.rows(17)[1], one.rows(17)[1])
    assert not np.array_equal(batches(seed=4).rows(0)[0], one.rows(0)[0])
    assert one.rows(0)[1].shape == (100, NOISE)


def test_rows_of_ranks_are_rows_of_the_batch():
    one = batches()
    whole = one.read(5, slice(0, 100))
    parts = [one.read(5, part) for part in (slice(0, 33), slice(33, 66), slice(66, 100))]
    assert all(
        np.array_equal(np.concatenate(split), all_) for split, all_ in zip(zip(*parts, strict=True), whole, strict=True)
    )


def test_shuffled_captions_are_as_many_as_asked_for():
    moved = batches(shuffled=0.4).captioned_as != np.arange(1437)
    assert 0.38 <= moved.mean() <= 0.4


def test_a_trained_model_is_taken_by_every_command(tmp_path, monkeypatch):
    """What is written is a model like any other, and judges as it did in training."""
    import siglip_ref as sr
    from siglip_ref.training.finish import finish
    from siglip_ref.training.loop import Quiet
    from siglip_ref.training.parallel import Alone

    mini(monkeypatch)
    run = alone(tmp_path, steps=40, dtype="float32")
    finish(run.settings, tmp_path, run, Alone(), Quiet())
    model = sr.load(tmp_path / "model")
    assert all(np.array_equal(model.params[name], value) for name, value in run.params.items())
    data = open_data("digits")
    pictures = [data.test.picture(number, np.array(STILL)) for number in range(data.test.count)]
    found = model.zero_shot(pictures, data.classes, data.prompt)
    accuracy = (found.logits.argmax(1) == np.array(data.test.labels)).mean()
    assert abs(accuracy - run.judged[-1]["zero-shot accuracy"]) <= 2 / 360
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 41


def test_still_pictures_are_resized_once_and_are_the_same_pixels_in_every_epoch(tmp_path, monkeypatch):
    from siglip_ref.training.data import batches
    from siglip_ref.training.data.captioned import STILL, Captioned
    from siglip_ref.use.preprocess import PREPROCESS

    rng, calls, resize = np.random.default_rng(0), [], batches.resize
    pictures = rng.integers(0, 256, (5, 40, 30, 3), dtype=np.uint8)
    monkeypatch.setattr(batches, "resize", lambda *given: calls.append(1) or resize(*given))
    how = PREPROCESS["huggingface"]
    still, varied = (
        Captioned(5, lambda n, noise: pictures[n], lambda n, noise: "", still=kind) for kind in (True, False)
    )
    see, each_time = (batches.pixels_of(part, (16, 16), how) for part in (still, varied))
    first = [see(n, STILL) for n in range(5)]
    assert len(calls) == 5
    assert all(np.array_equal(see(n, STILL), first[n]) for n in range(5)) and len(calls) == 5
    assert all(np.array_equal(each_time(n, STILL), first[n]) for n in range(5)) and len(calls) == 10
    monkeypatch.setattr(batches, "RESIZED", 2 * 16 * 16 * 3)  # room for two
    see = batches.pixels_of(still, (16, 16), how)
    assert all(np.array_equal(see(n, STILL), first[n]) for n in (*range(5), *range(5))) and len(calls) == 18
