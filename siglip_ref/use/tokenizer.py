"""Text to token ids: SentencePiece files, cleaned, ended and padded as each library does it; or plain bytes.

What matters most: SigLIP pools the LAST position, so every text is padded to the full length it was trained with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.errors import UsageError, need
from siglip_ref.process.typed import tidy, visible
from siglip_ref.use.text_conventions import CLEAN, TextConvention, named_convention

SPACE = "\u2581"  # SentencePiece's sign for a space
# Appended to a SentencePiece file, this sets normalizer_spec.add_dummy_prefix to false: fields of a message add up.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
EXTRA_IDS = 100  # sentinels at the end of a file that the embedding table does not have: mc4's


@dataclass(frozen=True)
class Tokenizer:
    """Call it with texts; it gives int32 ids (texts, length).

    pieces : text -> ids, without end and padding; vocabulary : number of ids; length : of every row
    """

    name: str
    pieces: Callable[[str], list[int]]
    vocabulary: int
    length: int
    convention: TextConvention

    def __call__(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Clean, cut to length - 1, end with EOS, pad to length.

        Examples
        --------
        >>> byte_tokenizer(6)(["hi"])
        array([[107, 108,   1,   0,   0,   0]], dtype=int32)
        """
        if isinstance(texts, str):
            texts = [texts]
        ids = np.full((len(texts), self.length), self.convention.pad, np.int32)
        for row, text in zip(ids, texts, strict=True):
            found = [*self._ids(text)[: self.length - 1], self.convention.eos]
            row[slice(len(found)) if self.convention.side == "right" else slice(-len(found), None)] = found
        return ids

    def truncated(self, texts: Sequence[str]) -> list[str]:
        """The texts that do not fit whole."""
        return [text for text in texts if len(self._ids(text)) >= self.length]

    def is_nothing(self, text: str) -> bool:
        """Whether cleaning leaves no id of a text."""
        cleaned = tidy(CLEAN[self.convention.clean](text))
        return not cleaned or not self.pieces(cleaned)

    def _ids(self, text: str) -> list[int]:
        if self.convention.marked:
            text = SPACE + text.replace(SPACE, " ")
        try:
            return self.pieces(CLEAN[self.convention.clean](text))
        except UsageError:
            raise
        except Exception as error:  # the libraries of tokenisers raise whatever they like
            raise UsageError(
                expected=f"a text that {self.name} can split",
                got=f"{text[:60]!r}: {type(error).__name__}: {error}"[:300],
                cause="a text that is no Unicode, or a tokeniser whose file contradicts itself",
                repair="save the text as UTF-8; download the tokeniser again",
            ) from error


def cut_note(tokenizer: Tokenizer, texts: Sequence[str], what: str) -> list[str]:
    """A sentence on texts that are too long for the model and were cut, if there are any.

    >>> cut_note(byte_tokenizer(4), ["cat", "catalogue", "catamaran"], "texts")[0][:65]
    '2 of 3 texts are longer than the 3 bytes this model reads and are'
    """
    different = list(dict.fromkeys(texts))
    cut = set(tokenizer.truncated(different))
    if not cut:
        return []
    count = sum(text in cut for text in texts)
    alike = len(different) - len(np.unique(tokenizer(different), axis=0))
    first = visible(next(text for text in texts if text in cut))
    return [
        f"{count} of {len(texts)} {what} are longer than the {tokenizer.length - 1} "
        f"{'bytes' if tokenizer.name == 'bytes' else 'tokens'} this model reads and are cut there, "
        f"the first: '{first[:60]}{'...' * (len(first) > 60)}'"
        + f"; {alike} can no longer be told from others"
        * (alike > 0)
    ]


def byte_tokenizer(length: int) -> Tokenizer:
    """UTF-8 bytes as ids 3 to 258, 0 pads, 1 ends: needs no file; for models trained here (vocabulary 259)."""
    convention = TextConvention("bytes", "none", pad=0)
    return Tokenizer("bytes", lambda text: [byte + 3 for byte in text.encode()], 259, length, convention)


def sentencepiece_tokenizer(path: str | Path, length: int, convention: str | TextConvention) -> Tokenizer:
    """A SentencePiece file: spiece.model (c4_en, mc4), tokenizer.model (Gemma)."""
    how, model = named_convention(convention), need("sentencepiece", f"to read {path}").SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(Path(path).read_bytes() + NO_DUMMY_PREFIX * how.marked)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise _broken(path, error) from error
    mark = "<unk>" * how.marked
    marks = len(model.encode(mark))

    def pieces(text: str) -> list[int]:
        return list(model.encode(mark + text, out_type=int)[marks:])

    return Tokenizer(Path(path).name, pieces, model.get_piece_size(), length, how)


def json_tokenizer(path: str | Path, length: int, convention: str | TextConvention) -> Tokenizer:
    """A tokenizer.json, through the tokenizers library."""
    library = need("tokenizers", f"to read {path}, or a SentencePiece file beside it")
    try:
        backend = library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise _broken(path, error) from error
    backend.no_padding()
    backend.no_truncation()

    def pieces(text: str) -> list[int]:
        return list(backend.encode(text, add_special_tokens=False).ids)

    how = replace(named_convention(convention), marked=False)  # the file says itself where spaces go
    return Tokenizer(Path(path).name, pieces, backend.get_vocab_size(), length, how)


FILES = ("spiece.model", "tokenizer.model", "sentencepiece.model", "tokenizer.json")


def find_tokenizer(
    place: str | Path | None, directory: Path, vocabulary: int, length: int, convention: TextConvention
) -> Tokenizer:
    """The tokeniser of a model.

    Parameters
    ----------
    place : a file, "bytes", or None: the first of `FILES` in the directory, bytes if the vocabulary is theirs (259)
    directory : the model's
    vocabulary, length : the model's; the tokeniser must fit
    convention : the model's
    """
    found = next((directory / name for name in FILES if (directory / name).is_file()), None)
    if place is None and found is None and vocabulary == 259:
        place = "bytes"
    if place == "bytes":
        made = byte_tokenizer(length)
    else:
        file = Path(place) if place is not None else found
        if file is None or not file.is_file():
            raise UsageError(
                expected=f"a tokeniser: {', '.join(FILES)} in {directory}, or --tokenizer FILE",
                got="none of them" if file is None else f"nothing at {file}",
                cause="big_vision keeps its tokenisers apart from its weights, and some downloads leave them out",
                repair="download the model's own: c4_en (SigLIP, spiece.model), mc4 (SigLIP i18n), Gemma (SigLIP 2)",
            )
        maker = json_tokenizer if file.suffix == ".json" else sentencepiece_tokenizer
        made = maker(file, length, convention)
    if not vocabulary <= made.vocabulary <= vocabulary + EXTRA_IDS:
        raise UsageError(
            expected=f"a tokeniser of {vocabulary:,} pieces, as the model's embedding table",
            got=f"{made.name} with {made.vocabulary:,}",
            cause="the tokeniser of another model",
            repair="32,000: c4_en (SigLIP); 250,000: mc4 (SigLIP i18n); 256,000: Gemma (SigLIP 2); 259: bytes",
        )
    return made


def _broken(path: str | Path, error: Exception) -> UsageError:
    return UsageError(
        expected=f"a tokeniser in {path}",
        got=str(error).splitlines()[0] if str(error) else type(error).__name__,
        cause="a download that broke off, a git-lfs pointer, or another kind of file",
        repair="download it again",
    )
