"""A loaded model: embeddings of images and texts, zero-shot classification."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from siglip_ref.data.walk import images_below
from siglip_ref.embed import computes_with, image_embeddings, text_embeddings
from siglip_ref.errors import UsageError
from siglip_ref.labels import fill, require_words, same_to_the_model
from siglip_ref.ops.elementary import Array, sigmoid
from siglip_ref.preprocess import SUFFIXES, Preprocess, patches, pixels
from siglip_ref.sizes import Config
from siglip_ref.tokenizer import Tokenizer, cut_note
from siglip_ref.towers.naflex import Patches
from siglip_ref.typed import visible

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
    notes: tuple[str, ...] = ()  # what is to be known of the labels: cut, or the same to the model

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
        return computes_with(self.ops)

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
        embeddings = np.concatenate(done)
        require_finite(embeddings, names, self)
        return Images(embeddings, names, skipped)

    def embed_texts(self, texts: Sequence[str], *, batch: int = 32, progress: Progress | None = None) -> Array:
        """Unit vectors (n, D) of texts, padded as the model was trained; a warning counts those that are cut."""
        for note in cut_note(self.tokenizer(), texts, "texts"):
            warnings.warn(note, stacklevel=2)
        return self._embed_texts(texts, batch, progress)

    def _embed_texts(self, texts: Sequence[str], batch: int = 32, progress: Progress | None = None) -> Array:
        tokenizer = self.tokenizer()
        done = [np.zeros((0, self.config.embed), self.params["bias"].dtype)]
        for start in range(0, len(texts), batch):
            tokens = tokenizer(texts[start : start + batch])
            done.append(text_embeddings(self.params, tokens, self.config, self.ops))
            if progress:
                progress(min(start + batch, len(texts)), len(texts))
        embeddings = np.concatenate(done)
        require_finite(embeddings, [repr(text) for text in texts], self)
        return embeddings

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
        tokenizer = self.tokenizer()
        texts = fill(template, require_words(labels, tokenizer), canonicalise=tokenizer.convention.prompts)
        notes = (*cut_note(tokenizer, texts, "labels in their template"), *same_to_the_model(texts, labels, tokenizer))
        text_embed = self._embed_texts(texts)
        found = self.embed_images(images, batch=batch, threads=threads, progress=progress)
        with np.errstate(over="ignore"):
            logits = np.exp(self.params["log_scale"]) * (found.embeddings @ text_embed.T) + self.params["bias"]
        require_finite(logits, found.names, self)
        return ZeroShot(sigmoid(logits), logits, list(labels), found.names, found.skipped, notes)

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


def require_finite(values: Array, names: Sequence[str], model: Model) -> None:
    """Refuse rows that are no numbers: NaN has no place among scores."""
    wrong = np.flatnonzero(~np.isfinite(values).all(1))
    if not len(wrong):
        return
    bad = [name for name, value in model.params.items() if not np.isfinite(value).all()]
    how = (*model.preprocess.mean, *model.preprocess.std)
    if bad:
        cause = f"the weights hold NaN or infinity in {len(bad)} of {len(model.params)} tensors: {', '.join(bad[:3])}"
        repair = "take another checkpoint: this one's training diverged, or the file was damaged"
    elif not np.isfinite(how).all() or 0 in model.preprocess.std:
        cause = f"images are prepared with mean {model.preprocess.mean} and std {model.preprocess.std}"
        repair = "repair the settings of images beside the weights, or give preprocess= (--preprocess)"
    else:
        cause = f"the weights are finite, but so large that {values.dtype} overflows: look at log_scale and norms"
        repair = "take another checkpoint; or load it with dtype=numpy.float64"
    raise UsageError(
        "results that are numbers",
        f"NaN or infinity for {len(wrong)} of {len(values)}, the first: {visible(names[int(wrong[0])])}",
        cause,
        repair,
    )


def image_files(images: Sequence[Any] | str | Path) -> list[Any]:
    """The images of a folder and of all folders in it, in the order of their names; a list is returned as it is."""
    if not isinstance(images, str | Path):
        return list(images)
    place = Path(images)
    found = images_below(place) if place.is_dir() else [place]
    if not found or not place.exists():
        raise UsageError(
            expected="an image, or a folder of images",
            got=f"nothing at {place}"
            if not place.exists()
            else f"no file of {', '.join(SUFFIXES)} in or below {place}",
            cause="images of another format, or elsewhere" if place.exists() else "a spelling mistake",
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
