"""Sets of pairs are said as one reads them, of whichever parts of a batch."""

import re

import pytest

from siglip_ref.check.diagnosis.derive.formula import Coupled, Logit, Term
from siglip_ref.check.diagnosis.derive.sets import MEMBERS, OfPairs, Where
from siglip_ref.check.diagnosis.derive.shapes import Number, Shape
from siglip_ref.check.diagnosis.parts import PARTS
from siglip_ref.report.computes import _coupled, _term, form_in_words, where_in_words

LOGIT = Logit(Number((("exp(s)", 1.0),)), Number((("b", 1.0),)))
SOFTPLUS = Shape("softplus")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("not diagonal", "chunks of 8"), "i != j and i, j in the same chunk of 8"),
        (("not chunks of 8",), "i, j not in the same chunk of 8"),
        (("in the same one of 4 parts",), "i, j in the same part (of 4)"),
        (("text in the next one after the image's of 2 chunks",), "text j in the chunk (of 2) after image i's, "),
        (("not images of the last of chunks of 8",), "not (image i in the last chunk of 8)"),
        (("not j mod 4 = i",), "j mod 4 != i"),
        (("not |i - j| <= 1",), "|i - j| > 1"),
        (("not i + j even",), "i + j odd"),
        (("not even images",), "outside even images"),
    ],
)
def test_sets_are_said(names, words):
    assert where_in_words(Where(names)).startswith(words)


def test_every_set_has_words_of_its_own_that_name_no_one_of_something():
    said = {sign + name: where_in_words(Where((sign + name,))) for name in MEMBERS for sign in ("", "not ")}
    unclear = [words for words in said.values() if re.search(r"one of (chunks|\d)|[{}]|two of chunks|^chunks", words)]
    assert not unclear
    assert len(set(said.values())) == len(said)


def test_a_mean_over_each_part_is_divided_by_what_is_in_it():
    assert form_in_words(OfPairs(1.0, 0.0, 0.0, "chunks of 4", -1.0)) == "1/(images in i's chunk of 4)"
    both = form_in_words(OfPairs(1.0, 0.0, 0.0, "chunks of 4, times their number", -1.0))
    assert both == "1/((images in i's chunk of 4) (number of chunks))"
    by_chunk = Where(("not diagonal", "everywhere")), OfPairs(1.0, 0.0, 0.0, "chunks of 4", -1.0)
    sum_in_words = _term(Term((by_chunk,), SOFTPLUS, 1, LOGIT), False, 0)
    assert sum_in_words.startswith("sum over i != j of 1/(images in i's chunk of 4) softplus(")
    assert not [of for of in PARTS if re.search("one of|their", form_in_words(OfPairs(1.0, 0.0, 0.0, of, -1.0)))]


def test_the_hardest_one_is_not_counted():
    one, two = (_coupled(Coupled("hardest, rows", OfPairs(1.0, -1.0), LOGIT, number)) for number in (1.0, 2.0))
    assert one == "1/B sum of softplus of each row's largest negative logit"
    assert two == "1/B sum of softplus of each row's 2 largest negative logits"
