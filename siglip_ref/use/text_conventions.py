"""What each library does to a text before its tokeniser sees it, and how it ends and pads the ids."""

import html
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from siglip_ref.errors import lookup, need

Clean = Literal[
    "none",
    "ascii lower",
    "lower",
    "canonical",
    "canonical case",
    "open_clip",
    "open_clip lower",
    "open_clip whitespace",
]


@dataclass(frozen=True)
class TextConvention:
    """How a library treats a text before and after SentencePiece.

    clean : see `CLEAN`; eos, pad : ids; side : of the padding; marked : "<unk>" and a space are put before the text and
    taken away again, as transformers' SigLIP 1 does; where SentencePiece finds two splits equally good, this decides;
    prompts : labels and templates of zero-shot are canonicalised first
    """

    name: str
    clean: Clean
    eos: int = 1
    pad: int = 1
    marked: bool = False
    prompts: bool = False
    side: Literal["right", "left"] = "right"


# Source: big_vision pp/ops_text.py and its demos; transformers 5.23 tokenization_siglip.py, tokenization_siglip2.py;
# open_clip 3.3 tokenizer.py. "big_vision-2" and the like: SigLIP 2, with Gemma's vocabulary.
TEXT_CONVENTIONS = {
    convention.name: convention
    for convention in (
        TextConvention("big_vision", "ascii lower", prompts=True),
        TextConvention("big_vision-2", "ascii lower", pad=0, prompts=True),
        TextConvention("huggingface", "canonical", marked=True),
        TextConvention("huggingface-2", "lower", pad=0),
        TextConvention("open_clip", "open_clip"),
        TextConvention("open_clip-2", "open_clip", pad=0),
    )
}


def ascii_lower(text: str) -> str:
    """A to Z alone: TensorFlow's lower, which leaves every other alphabet as it is."""
    return text.translate({upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)})


def canonical(text: str) -> str:
    """Lower case, no ASCII punctuation, single spaces: transformers' SigLIP 1 tokeniser."""
    return canonical_case(text.lower())


def canonical_case(text: str) -> str:
    """As `canonical`, but large letters stay: the same tokeniser with do_lower_case false."""
    return " ".join(text.translate(_no_punctuation()).split())


def canonical_prompt(text: str, keep: str) -> str:
    """As `canonical`, but '_' is a space and `keep` stays: "," in a label, "{}" in a template.

    Source: big_vision evaluators/proj/image_text/prompt_engineering.py, which does this to class names and templates
    alone, never to captions.

    >>> canonical_prompt("Hot_Dog, bun!", keep=",")
    'hot dog, bun'
    """
    kept = keep.join(part.translate(_no_punctuation()) for part in text.replace("_", " ").split(keep))
    return " ".join(kept.lower().split())


def open_clip_clean(text: str) -> str:
    """Repaired encodings, HTML entities resolved, '_' as a space, then as `canonical`."""
    return " ".join(_repaired(text).replace("_", " ").translate(_no_punctuation()).lower().split())


def open_clip_lower(text: str) -> str:
    """Repaired encodings, HTML entities resolved, single spaces, lower case."""
    return open_clip_whitespace(text).lower()


def open_clip_whitespace(text: str) -> str:
    """Repaired encodings, HTML entities resolved, single spaces."""
    return " ".join(_repaired(text).split())


def _repaired(text: str) -> str:
    ftfy = need("ftfy", "which open_clip cleans texts with")
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def _no_punctuation() -> dict[int, None]:
    return dict.fromkeys(map(ord, string.punctuation))


CLEAN: dict[Clean, Callable[[str], str]] = {
    "none": lambda text: text,
    "ascii lower": ascii_lower,
    "lower": str.lower,
    "canonical": canonical,
    "canonical case": canonical_case,
    "open_clip": open_clip_clean,
    "open_clip lower": open_clip_lower,
    "open_clip whitespace": open_clip_whitespace,
}


def named_convention(name: str | TextConvention) -> TextConvention:
    """A convention by its name."""
    if isinstance(name, TextConvention):
        return name
    repair = '"huggingface" for SigLIP, "huggingface-2" for SigLIP 2'
    return lookup(TEXT_CONVENTIONS, name, "text convention", repair)
