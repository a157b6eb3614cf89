"""Files beside weights that let others load a directory as it is: transformers' pipelines, sentence-transformers."""

import json
from pathlib import Path
from typing import Any

from siglip_ref.architecture.sizes import Config
from siglip_ref.use.companions import write_image_settings
from siglip_ref.use.preprocess import Preprocess

# Bytes as ids 3 to 258, 0 pads, 1 ends: ByT5's tokeniser is ours, without its sentinels. SigLIP sees its padding, so no
# mask of it may reach the model: input_ids alone.
BYTES: dict[str, Any] = {
    "tokenizer_class": "ByT5Tokenizer",
    "extra_ids": 0,
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "padding_side": "right",
    "model_input_names": ["input_ids"],
}
FILES = (
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    *("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"),
)


def write_settings(directory: Path, how: Preprocess, cfg: Config) -> None:
    """Of a model trained here from nothing: images, texts (as bytes), and both together."""
    write_image_settings(directory, how, cfg)
    processor = {"processor_class": "SiglipProcessor"}
    _write(directory / "tokenizer_config.json", BYTES | processor | {"model_max_length": cfg.text_length})
    _write(directory / "processor_config.json", processor)
    write_modules(directory, cfg)


def write_modules(directory: Path, cfg: Config) -> None:
    """What sentence-transformers asks for: both towers behind their processor, then unit length.

    SigLIP pools the last position, so every text is padded to the full length.
    """
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    length = {"padding": "max_length", "truncation": True, "max_length": cfg.text_length}
    _write(directory / "modules.json", modules)
    towers = {
        side: {"method": f"get_{side}_features", "method_output_name": "pooler_output"} for side in ("text", "image")
    }
    both = {"modality_config": towers, "module_output_name": "sentence_embedding"}
    _write(directory / "sentence_bert_config.json", both | {"processing_kwargs": {"text": length}})
    _write(directory / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
