"""A loaded model: embeddings of images and texts, zero-shot classification."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from siglip_ref import ops as specification
from siglip_ref.embed import image_embeddings, text_embeddings
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array, sigmoid
from siglip_ref.preprocess import SUFFIXES, Preprocess, patches, pixels
from siglip_ref.sizes import Config
from siglip_ref.tokenizer import Tokenizer
from siglip_ref.towers.naflex import Patches
from siglip_ref.wording import canonical_prompt

TEMPLATE = "This is a photo of {}."

Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class Images:
    """Embeddings (n, D) of the images that could be read; names, and (name, reason) of those that could not."""

    embeddings: Array
    names: list[str]
    skipped: list[tuple[str, str]]


@dataclass(frozen=True)
class ZeroShot:
    """Scores (images, labels), each between 0 and 1: the sigmoid of the logits.

    Every score stands for itself: SigLIP asks of each label "does this text belong to this image?". They need not sum
    to 1, and may all be small.
    """

    scores: Array
    logits: Array
    labels: list[str]
    names: list[str]
    skipped: list[tuple[str, str]]

    def sorted(self, image: int) -> list[tuple[str, float]]:
        """(label, score) of one image, best first."""
        order = np.argsort(-self.logits[image], kind="stable")
        return [(self.labels[i], float(self.scores[image, i])) for i in order]


@dataclass(frozen=True)
class Model:
    """Weights with everything they need: made by `siglip_ref.load`.

    ops : what computes, `siglip_ref.fast` or the specification; notes : what loading found
    """

    config: Config
    params: dict[str, Array]
    preprocess: Preprocess
    tokenizer: Callable[[], Tokenizer]  # made on first need: embedding images needs none
    ops: ModuleType
    notes: tuple[str, ...] = ()

    @property
    def computes_with(self) -> str:
        """In words, for reports."""
        return "the specification, plain NumPy" if self.ops is specification else "Numba twins (siglip_ref.fast)"

    def embed_images(
        self,
        images: Sequence[Any] | str | Path,
        *,
        batch: int = 8,
        threads: int = 2,
        progress: Progress | None = None,
    ) -> Images:
        """Unit vectors of images.

        Parameters
        ----------
        images : a folder, a file, or a list of files, Pillow images, uint8 arrays (height, width, 3)
        batch : images computed together
        threads : that decode and resize ahead of the computation
        progress : called with (done, of how many) after each batch

        Images that cannot be read are skipped and named.
        """
        sources = image_files(images)
        done, names, skipped = [np.zeros((0, self.config.embed), self.params["bias"].dtype)], [], []
        read = 0
        with ThreadPoolExecutor(max(1, threads)) as pool:
            for group in _batches(_ahead(pool, self._pixels, sources, 2 * batch), batch):
                good = [(name, image) for name, image in group if not isinstance(image, UsageError)]
                skipped += [
                    (name, f"{fault.got} ({fault.cause})") for name, fault in group if isinstance(fault, UsageError)
                ]
                if good:
                    stack = self._stack([image for _, image in good], done[0].dtype)
                    done.append(image_embeddings(self.params, stack, self.config, self.ops))
                    names += [name for name, _ in good]
                read += len(group)
                if progress:
                    progress(read, len(sources))
        return Images(np.concatenate(done), names, skipped)

    def embed_texts(self, texts: Sequence[str], *, batch: int = 32, progress: Progress | None = None) -> Array:
        """Unit vectors (n, D) of texts, padded as the model was trained."""
        tokenizer = self.tokenizer()
        done = [np.zeros((0, self.config.embed), self.params["bias"].dtype)]
        for start in range(0, len(texts), batch):
            tokens = tokenizer(texts[start : start + batch])
            done.append(text_embeddings(self.params, tokens, self.config, self.ops))
            if progress:
                progress(min(start + batch, len(texts)), len(texts))
        return np.concatenate(done)

    def zero_shot(
        self,
        images: Sequence[Any] | str | Path,
        labels: Sequence[str],
        template: str = TEMPLATE,
        *,
        batch: int = 8,
        threads: int = 2,
        progress: Progress | None = None,
    ) -> ZeroShot:
        """How well each label fits each image.

        Parameters
        ----------
        labels : words or phrases, put into the template in place of {}
        template : "{}" gives the labels as they are
        images, batch, threads, progress : as in `embed_images`
        """
        texts = fill(template, labels, canonicalise=self.tokenizer().convention.prompts)
        text_embed = self.embed_texts(texts)
        found = self.embed_images(images, batch=batch, threads=threads, progress=progress)
        logits = np.exp(self.params["log_scale"]) * (found.embeddings @ text_embed.T) + self.params["bias"]
        return ZeroShot(sigmoid(logits), logits, list(labels), found.names, found.skipped)

    def _pixels(self, source: Any) -> Any:
        try:
            if self.config.naflex:
                return patches(source, self.config.patch, self.preprocess)
            return pixels(source, self.config.image_size, self.preprocess)
        except UsageError as error:
            return error

    def _stack(self, images: list[Any], dtype: DTypeLike) -> Any:
        if self.config.naflex:
            values, grids = zip(*images, strict=True)
            return Patches(np.stack(values).astype(dtype, copy=False), np.array(grids))
        return np.stack(images).astype(dtype, copy=False)


def fill(template: str, labels: Sequence[str], *, canonicalise: bool = False) -> list[str]:
    """The template once for each label; canonicalised as big_vision does it, or as given."""
    empty = [i for i, label in enumerate(labels) if not label.strip()]
    if "{}" not in template or not labels or empty:
        raise UsageError(
            expected='a template with {} in it, and labels that are not empty: --labels "cat,dog"',
            got=f"template {template!r}, {len(labels)} labels" + (f", number {empty[0] + 1} empty" if empty else ""),
            cause="a stray comma" if empty else "a template without a place for the label, or no label",
            repair='--template "This is a photo of {}." --labels "cat,dog"',
        )
    if canonicalise:
        template, labels = canonical_prompt(template, "{}"), [canonical_prompt(label, ",") for label in labels]
    return [template.replace("{}", label.strip()) for label in labels]


def image_files(images: Sequence[Any] | str | Path) -> list[Any]:
    """The images of a folder (not below it) in the order of their names; a list is returned as it is."""
    if not isinstance(images, str | Path):
        return list(images)
    place = Path(images)
    found = sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES) if place.is_dir() else [place]
    if not found or not place.exists():
        raise UsageError(
            expected="an image, or a folder of images",
            got=f"nothing at {place}" if not place.exists() else f"no file of {', '.join(SUFFIXES)} in {place}",
            cause="a spelling mistake, or images of another format",
            repair="check the path",
        )
    return found


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Any], Any], sources: Sequence[Any], ahead: int
) -> Iterator[tuple[str, Any]]:
    """Results in order, never more than `ahead` of them waiting in memory."""
    waiting: list[tuple[str, Any]] = []
    rest = iter(enumerate(sources))
    while True:
        for number, source in islice(rest, ahead - len(waiting)):
            name = str(source) if isinstance(source, str | Path) else f"image {number}"
            waiting.append((name, pool.submit(work, source)))
        if not waiting:
            return
        name, future = waiting.pop(0)
        yield name, future.result()


def _batches(items: Iterable[tuple[str, Any]], size: int) -> Iterator[list[tuple[str, Any]]]:
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group
