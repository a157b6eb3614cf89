"""Files beside weights that let others load a directory as it is: transformers' pipelines, sentence-transformers."""

import json
from pathlib import Path
from typing import Any

from siglip_ref.architecture.sizes import Config
from siglip_ref.process.data import read_toml
from siglip_ref.use.companions import write_image_settings
from siglip_ref.use.preprocess import Preprocess

_ABOUT = read_toml(__file__, "exported")
FILES = (
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    *("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"),
)


def write_settings(directory: Path, how: Preprocess, cfg: Config) -> None:
    """Of a model trained here from nothing: images, texts (as bytes), and both together."""
    write_image_settings(directory, how, cfg)
    processor = {"processor_class": "SiglipProcessor"}
    _write(directory / "tokenizer_config.json", _ABOUT["bytes"] | processor | {"model_max_length": cfg.text_length})
    _write(directory / "processor_config.json", processor)
    write_modules(directory, cfg)


def write_modules(directory: Path, cfg: Config) -> None:
    """What sentence-transformers asks for: both towers behind their processor, then unit length.

    SigLIP pools the last position, so every text is padded to the full length.
    """
    length = {"padding": "max_length", "truncation": True, "max_length": cfg.text_length}
    _write(directory / "modules.json", _ABOUT["modules"])
    _write(directory / "sentence_bert_config.json", _ABOUT["both"] | {"processing_kwargs": {"text": length}})
    _write(directory / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
