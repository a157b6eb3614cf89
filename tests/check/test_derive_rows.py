"""Rows that are not divided by their length as they should be, over ranks; pairs of one id that are left out."""

import numpy as np
from test_blocks import check, gathered

import siglip_ref as sr
from siglip_ref.check.diagnosis.derive.formula import Difference, Rows
from siglip_ref.model.loss import weighted_loss
from siglip_ref.ops import pair_block
from siglip_ref.ops.elementary import sigmoid, softplus
from siglip_ref.report.repairs import repair_of


def length(rows):
    return np.sqrt((rows * rows).sum(-1, keepdims=True))


def projected(d, rows):
    unit = rows / length(rows)
    return (d - (d * unit).sum(-1, keepdims=True) * unit) / length(rows)


def test_texts_that_are_sent_undivided_are_told():
    def fn(image, text, log_scale, bias, comm):
        images, texts = gathered(image, comm), gathered(text, comm)
        total, d_image, d_text = np.zeros(3), np.zeros_like(image), np.zeros_like(text)
        for i, x in enumerate(images):
            for j, y in enumerate(texts):
                rows = y / length(y) if i == j else y
                part = pair_block(x / length(x), rows, log_scale, bias, np.eye(len(x), len(y), dtype=bool) & (i == j))
                total += [part.loss, part.d_log_scale, part.d_bias]
                d_image += (i == comm.rank) * projected(part.d_image_embed, x)
                d_text += (j == comm.rank) * (projected(part.d_text_embed, y) if i == j else part.d_text_embed)
        pairs = sum(map(len, images))
        return tuple(np.asarray(one) / pairs for one in (total[0], d_image, d_text, total[1], total[2]))

    said = check(fn, embeddings="raw").computes
    assert said[0].startswith("your loss over ranks"), said
    assert "texts of other ranks come to the product undivided by their length" in said[1], said


def test_other_pairs_of_one_id_that_are_left_out_are_told():
    def fn(image, text, log_scale, bias, ids):
        own = np.eye(len(image), dtype=bool)
        z = np.where(own, 1.0, -1.0)
        counts = own | (ids[:, None] != ids[None, :])
        logits = np.exp(log_scale) * image @ text.T + bias
        g = np.where(counts, -z * sigmoid(-z * logits), 0) / len(image)
        value = np.where(counts, softplus(-z * logits), 0).sum() / len(image)
        scale = np.exp(log_scale)
        return value, scale * g @ text, scale * g.T @ image, scale * (g * (image @ text.T)).sum(), g.sum()

    report = sr.check_loss(fn, "numpy", "float64", scale="log", embeddings="unit", positives="ids")
    assert any("left out of the sum" in line for line in report.computes), report.computes


def test_rows_that_should_be_unit_are_not_given_as_they_are():
    """Without its map alone a loss of raw rows would stay wrong."""
    columns = Rows(mapped="divided by the length of each column")
    assert "divide each row by its own length" in repair_of(Difference("rows", "both", columns, Rows("unit")))
    assert "the rows themselves" in repair_of(Difference("rows", "both", columns, Rows()))


def test_labels_shared_among_what_belongs_together_are_told():
    def fn(image, text, log_scale, bias, ids):
        match = 1.0 * (ids[:, None] == ids)
        labels = match / match.sum(1, keepdims=True)
        found = weighted_loss(image, text, log_scale, bias, positive=labels, negative=1 - labels)
        return tuple(np.asarray(one) for one in found)

    report = sr.check_loss(fn, "numpy", "float64", scale="log", embeddings="unit", positives="ids")
    assert any("the label 1 divided by how many texts" in line for line in report.computes), report.computes


def test_texts_of_an_image_that_are_averaged_are_told():
    def fn(image, text, log_scale, bias):
        mean = text.reshape(len(image), -1, text.shape[1]).mean(1)
        own = np.eye(len(image))
        found = weighted_loss(image, mean, log_scale, bias, positive=own, negative=1 - own)
        d_text = np.repeat(found.d_text_embed, len(text) // len(image), 0) * len(image) / len(text)
        return tuple(np.asarray(one) for one in found._replace(d_text_embed=d_text))

    report = sr.check_loss(fn, "numpy", "float64", scale="log", embeddings="unit", captions_per_image=3)
    assert any("averaged before the product" in line for line in report.computes), report.computes
