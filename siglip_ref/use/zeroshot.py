"""A loaded model: embeddings of images and texts, zero-shot classification."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.architecture.sizes import Config
from siglip_ref.checkpoint.provenance import Setting
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array, sigmoid
from siglip_ref.ops.record import Ops
from siglip_ref.use.inference import computes_with, image_embeddings, patch_embeddings, text_embeddings
from siglip_ref.use.labels import fill, look_alike, require_words, same_to_the_model
from siglip_ref.use.preprocess import Preprocess
from siglip_ref.use.reading import batches_ahead, image_files, reader, stacked
from siglip_ref.use.refusals import clear_notes, require_finite, require_known, require_side
from siglip_ref.use.tokenizer import Tokenizer, cut_note

TEMPLATE = "This is a photo of {}."

Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class Images:
    """Embeddings (n, D) of the images that could be read; names, and (name, reason) of those that could not.

    notes : what does not go without saying of those that could be read
    """

    embeddings: Array
    names: list[str]
    skipped: list[tuple[str, str]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PatchImages:
    """Embeddings of the patches of images, each array (rows, columns, D); names and skipped as in `Images`."""

    embeddings: list[Array]
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
    notes: tuple[str, ...] = ()  # what is to be known of labels and images

    def sorted(self, image: int) -> list[tuple[str, float]]:
        """(label, score) of one image, best first."""
        order = np.argsort(-self.logits[image], kind="stable")
        return [(self.labels[i], float(self.scores[image, i])) for i in order]


@dataclass(frozen=True)
class Model:
    """Weights with everything they need: made by `siglip_ref.load`.

    ops : what computes, `siglip_ref.fast` or the specification
    notes : what loading found; settings : where each setting comes from, defaults included
    sides : ("image", "text"), or the one tower that the file has
    """

    config: Config
    params: dict[str, Array]
    preprocess: Preprocess
    tokenizer: Callable[[], Tokenizer]  # made on first need: embedding images needs none
    ops: Ops
    notes: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    sides: tuple[str, ...] = ("image", "text")

    @property
    def computes_with(self) -> str:
        """In words, for reports."""
        return computes_with(self.ops)

    def prepacked(self) -> "Model":
        """The same model with the kernels of its blocks packed once, for many calls: the same bits.

        Quicker the fewer rows are computed together (docs/performance.md), for as much memory again. A model
        that computes with the specification is returned as it is.
        """
        if not self.ops.compiled:
            return self
        from siglip_ref.fast.prepack import prepacked

        return replace(self, ops=prepacked(self.params, self.ops))

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
        require_side(self.sides, self.config, "image")
        sources = image_files(images)
        done, names, skipped = [np.zeros((0, self.config.embed), self._dtype)], [], []
        read = clear = 0
        for group in batches_ahead(sources, reader(self.config, self.preprocess), batch, threads):
            good = [(name, image) for name, image in group if not isinstance(image, UsageError)]
            skipped += [
                (name, f"{fault.got} ({fault.cause})") for name, fault in group if isinstance(fault, UsageError)
            ]
            if good:
                clear += sum(image.clear for _, image in good)
                done.append(self.embed_prepared([image.values for _, image in good]))
                names += [name for name, _ in good]
            read += len(group)
            if progress:
                progress(read, len(sources))
        embeddings = np.concatenate(done)
        require_finite(embeddings, names, self)
        return Images(embeddings, names, skipped, clear_notes(clear))

    def embed_prepared(self, images: Sequence[Any], size: int = 0) -> Array:
        """Unit vectors of images that `siglip_ref.use.reading.reader` gave; computed as a batch of at least `size`."""
        with np.errstate(all="ignore"):  # what overflows is found later
            stack = stacked(images, self.config, self._dtype, size)
            return image_embeddings(self.params, stack, self.config, self.ops)[: len(images)]

    def embed_patches(self, images: Sequence[Any] | str | Path, *, batch: int = 8, threads: int = 2) -> PatchImages:
        """Unit vectors of every patch of images: their products with those of texts say where something is.

        images, batch, threads : as in `embed_images`
        """
        require_side(self.sides, self.config, "image")
        done: list[Array] = []
        names, skipped = [], []
        for group in batches_ahead(image_files(images), reader(self.config, self.preprocess), batch, threads):
            for name, image in group:
                if isinstance(image, UsageError):
                    skipped.append((name, f"{image.got} ({image.cause})"))
                    continue
                stack = stacked([image.values], self.config, self._dtype)
                with np.errstate(all="ignore"):  # what overflows is found below
                    found = patch_embeddings(self.params, stack, self.config, self.ops)[0]
                rows, columns = image.values[1] if self.config.naflex else self.config.grid
                found = found[: rows * columns]
                require_finite(found, [name] * len(found), self)
                done.append(found.reshape(rows, columns, -1))
                names.append(name)
        return PatchImages(done, names, skipped)

    def embed_texts(self, texts: Sequence[str], *, batch: int = 32, progress: Progress | None = None) -> Array:
        """Unit vectors (n, D) of texts, padded as the model was trained; a warning counts those that are cut."""
        require_side(self.sides, self.config, "text")
        for note in cut_note(self.tokenizer(), texts, "texts"):
            warnings.warn(note, stacklevel=2)
        return self._embed_texts(texts, batch, progress)

    def _embed_texts(self, texts: Sequence[str], batch: int = 32, progress: Progress | None = None) -> Array:
        tokenizer = self.tokenizer()
        done = [np.zeros((0, self.config.embed), self._dtype)]
        for start in range(0, len(texts), batch):
            tokens = tokenizer(texts[start : start + batch])
            require_known(self, tokens)
            with np.errstate(all="ignore"):  # what overflows is found below
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
        for side in ("text", "image"):
            require_side(self.sides, self.config, side)
        tokenizer = self.tokenizer()
        texts = fill(template, require_words(labels, tokenizer), canonicalise=tokenizer.convention.prompts)
        notes = (
            *cut_note(tokenizer, texts, "labels in their template"),
            *same_to_the_model(texts, labels, tokenizer),
            *look_alike(labels),
        )
        text_embed = self._embed_texts(texts)
        found = self.embed_images(images, batch=batch, threads=threads, progress=progress)
        with np.errstate(all="ignore"):
            logits = self.logits(found.embeddings @ text_embed.T)
        require_finite(logits, found.names, self)
        return ZeroShot(sigmoid(logits), logits, list(labels), found.names, found.skipped, (*notes, *found.notes))

    def logits(self, similarities: Array) -> Array:
        """What the model makes of cosines, by its scale and bias; their sigmoid is a score."""
        return np.exp(self.params["log_scale"]) * similarities + self.params["bias"]

    @property
    def _dtype(self) -> Any:
        return next(iter(self.params.values())).dtype
