"""Labels of a zero-shot classification: put into a template, and judged in the form in which the model sees them."""

import unicodedata
from collections.abc import Sequence

from siglip_ref.errors import UsageError, few
from siglip_ref.process.typed import tidy, visible
from siglip_ref.use.text_conventions import canonical_prompt
from siglip_ref.use.tokenizer import Tokenizer


def fill(template: str, labels: Sequence[str], *, canonicalise: bool = False) -> list[str]:
    """The template once for each label; canonicalised as big_vision does it, or as given."""
    empty = [i for i, label in enumerate(labels) if not tidy(label)]
    if "{}" not in template or not labels or empty:
        raise UsageError(
            expected='a template with {} in it, and labels that are not empty: --labels "cat,dog"',
            got=f"template {template!r}, {len(labels)} labels" + (f", number {empty[0] + 1} empty" if empty else ""),
            cause="a stray comma" if empty else "no place for the label in the template" if labels else "no label",
            repair='--template "This is a photo of {}." --labels "cat,dog"',
        )
    if canonicalise:
        template, labels = canonical_prompt(template, "{}"), [canonical_prompt(label, ",") for label in labels]
    return [template.replace("{}", tidy(label)) for label in labels]


def look_alike(labels: Sequence[str]) -> list[str]:
    """A note on labels that look the same and are written in other code points, as an accent apart from its letter."""
    alike: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        alike.setdefault(unicodedata.normalize("NFC", label), []).append(label)
    groups = [" = ".join(map(ascii, group)) for group in alike.values() if len(group) > 1]
    return _note("these look the same, and are scored each by its own code points", groups)


def require_words(labels: Sequence[str], tokenizer: Tokenizer) -> Sequence[str]:
    """The labels, if something is left of each once it is cleaned; else the template alone would be scored."""

    def is_nothing(label: str) -> bool:
        return tokenizer.is_nothing(canonical_prompt(label, ",") if tokenizer.convention.prompts else label)

    nothing = [label for label in labels if tidy(label) and is_nothing(label)]
    if nothing:
        raise UsageError(
            expected="labels of which something is left when they are cleaned as the model was trained",
            got=few([f"'{visible(label)}'" for label in nothing], 5),
            cause="this model's texts lose punctuation and what cannot be seen, and these labels are nothing else",
            repair='write them in words: "question mark" for "?"',
        )
    return labels


def same_to_the_model(texts: Sequence[str], labels: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """A note on labels that become the same ids: written twice, cleaned or cut to the same."""
    alike: dict[bytes, list[str]] = {}
    for row, label in zip(tokenizer(texts), labels, strict=True):
        alike.setdefault(row.tobytes(), []).append(label)
    groups = [" = ".join(f"'{visible(label)}'" for label in group[:5]) for group in alike.values() if len(group) > 1]
    return _note("the same to this model, and so with the same score", groups)


def _note(what: str, groups: Sequence[str]) -> list[str]:
    more = f"; and {len(groups) - 3} more such groups" * (len(groups) > 3)
    return [f"{what}: {'; '.join(groups[:3])}{more}"] if groups else []
