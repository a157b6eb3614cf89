"""Models as people have them: wrapped, averaged, one tower, inside a larger model, with adapters, with axes turned."""

import json

import numpy as np
import pytest
from PIL import Image
from saved import CFG, PARAMS, same, save, settings, tensors, write

import siglip_ref as sr
from siglip_ref.checkpoint.load import load_checkpoint
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.checkpoint.tables.wrapped import without_wrappers
from siglip_ref.errors import UsageError

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))


@pytest.fixture
def place(tmp_path):
    return save(tmp_path / "model")


def refused(path, *words, **options):
    """The error, which must hold these words."""
    with pytest.raises(UsageError) as caught:
        load_checkpoint(path, **options)
    said = str(caught.value).replace(str(path), "")
    for word in words:
        assert word in said, caught.value
    return caught.value


def renamed(place, how):
    """Every name of the file changed."""
    return write(place, {how(name): value for name, value in tensors(place).items()})


PREFIXES = (
    "_orig_mod.",
    "module.",
    "model.",
    "state_dict.",
    "module._orig_mod.",
    "state_dict.model._orig_mod.",
    "a.b.c.d.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_before_every_name_comes_off_and_is_noted(place, prefix):
    checkpoint = load_checkpoint(renamed(place, lambda name: prefix + name))
    assert same(checkpoint.params)
    assert any(prefix.split(".")[0] in note for note in checkpoint.notes)


def test_wrappers_inside_the_names(place):
    """torch.compile and checkpointing, layer by layer; FSDP around a tower."""

    def wrap(name):
        name = name.replace("layers.0.", "layers.0._orig_mod.").replace(
            "layers.1.", "layers.1._checkpoint_wrapped_module."
        )
        return name.replace("text_model.", "text_model._fsdp_wrapped_module.")

    checkpoint = load_checkpoint(renamed(place, wrap))
    assert same(checkpoint.params)
    assert "_fsdp_wrapped_module." in checkpoint.notes[0] and "_orig_mod." in checkpoint.notes[0]
    assert without_wrappers("_orig_mod.module.a.module.b") == "a.b"


@pytest.mark.parametrize("format", ["open_clip", "big_vision"])
@pytest.mark.parametrize("prefix", ["module.", "x.y."])
def test_prefixes_in_other_formats(tmp_path, format, prefix):
    file = save_checkpoint(tmp_path / "m", PARAMS, CFG, format)
    if format == "open_clip":
        from safetensors.numpy import load_file, save_file

        file = file / "open_clip_model.safetensors"
        save_file({prefix + name: value for name, value in load_file(file).items()}, file)
    else:
        prefix = prefix.replace(".", "/")
        with np.load(file) as content:
            np.savez(file, **{prefix + name: content[name] for name in content.files})
    assert same(load_checkpoint(file).params)


def test_two_copies_are_listed_and_one_is_chosen(place):
    """An average of the weights beside the weights: which is meant, nobody can know."""
    found = tensors(place)
    write(
        place, {f"model.{name}": value for name, value in found.items()} | {f"ema.{n}": v + 1 for n, v in found.items()}
    )
    refused(place, "'ema.'", "'model.'", 'prefix="ema."')
    assert same(load_checkpoint(place, prefix="model.").params)
    averaged = load_checkpoint(place, prefix="ema.")
    assert np.array_equal(averaged.params["image/norm/beta"], PARAMS["image/norm/beta"] + 1)
    assert sr.load(place, prefix="model.").params.keys() == PARAMS.keys()
    refused(place, "another prefix", prefix="teacher.")


def test_a_copy_beside_the_plain_names(place):
    found = tensors(place)
    write(place, found | {f"teacher.{name}": value + 1 for name, value in found.items()})
    refused(place, "''", "'teacher.'")
    assert same(load_checkpoint(place, prefix="").params)


def test_moments_of_an_optimiser_are_no_second_model(tmp_path):
    file = save_checkpoint(tmp_path / "m", PARAMS, CFG, "big_vision")
    with np.load(file) as content:
        whole = {name: content[name] for name in content.files}
    moments = {f"opt/0/{which}/{name}": value * 0 for name, value in whole.items() for which in ("mu", "nu")}
    np.savez(file, **{f"params/{name}": value for name, value in whole.items()}, **moments)
    checkpoint = load_checkpoint(file)
    assert same(checkpoint.params)
    assert any("other tensors were not read" in note for note in checkpoint.notes)


@pytest.mark.parametrize("twice", ["logit_bias", "vision_model.post_layernorm.weight"])
def test_one_name_in_two_wrappers_is_refused(place, twice):
    found = tensors(place)
    write(place, found | {f"module.{twice}": found[twice] + 1})
    refused(place, "each tensor once", f"module.{twice}")
    assert same(load_checkpoint(place, prefix="").params)


TOWERS = {
    "alone": "vision_model.",
    "alone, as transformers 5 saves it": "",
    "in a model of vision and language": "model.vision_tower.vision_tower.vision_model.",
    "deep": "a.b.c.vision_model.",
    "without its own name": "model.vision_tower.",
}
LANGUAGE = {
    "model.language_model.layers.0.mlp.up_proj.weight": np.ones((3, 2), np.float32),
    "lm_head.weight": np.ones((3, 2), np.float32),
}


@pytest.mark.parametrize("which", TOWERS)
@pytest.mark.parametrize("config", ["of SigLIP", "of the larger model", "of the tower", "none"])
def test_an_image_tower_embeds_images_and_says_that_it_knows_no_texts(place, which, config):
    whole = sr.load(place).embed_images([PHOTO]).embeddings
    begin = TOWERS[which]
    found = {
        begin + n.removeprefix("vision_model."): v for n, v in tensors(place).items() if n.startswith("vision_model.")
    }
    write(place, found | (LANGUAGE if "model." in begin.removesuffix("vision_model.") else {}))
    told = json.loads((place / "config.json").read_text())
    inside = told["vision_config"] | {"model_type": "siglip_vision_model"}
    if config == "of the larger model":
        settings(place, "config.json", model_type="llava", text_config={"model_type": "gemma"}, vision_config=inside)
    elif config == "of the tower":
        settings(place, "config.json", **inside)
    elif config == "none":
        (place / "config.json").unlink()
    model = sr.load(place)
    assert same(model.params, "image/") and model.sides == ("image",)
    if config == "none":
        assert any("taken from its shapes, with 1 heads" in note for note in model.notes)
    else:
        assert np.array_equal(model.embed_images([PHOTO]).embeddings, whole)
    for ask in (lambda: model.embed_texts(["a cat"]), lambda: model.zero_shot([PHOTO], ["cat"])):
        with pytest.raises(UsageError, match="image tower alone"):
            ask()


@pytest.mark.parametrize("begin", ["text_model.", "", "x.text_model."])
def test_a_text_tower_embeds_texts(tmp_path, begin):
    from dataclasses import replace

    cfg = replace(CFG, vocabulary=259)
    place = save(tmp_path / "m", cfg)
    whole = sr.load(place).embed_texts(["a cat", "two"])
    found = {begin + n.removeprefix("text_model."): v for n, v in tensors(place).items() if n.startswith("text_model.")}
    write(place, found)
    told = json.loads((place / "config.json").read_text())["text_config"]
    settings(place, "config.json", **told | {"model_type": "siglip_text_model"})
    model = sr.load(place)
    assert model.sides == ("text",) and np.array_equal(model.embed_texts(["a cat", "two"]), whole)
    with pytest.raises(UsageError, match="text tower alone"):
        model.embed_images([PHOTO])


@pytest.mark.parametrize("format", ["open_clip", "big_vision"])
@pytest.mark.parametrize("side", ["image", "text"])
def test_towers_of_other_formats(tmp_path, format, side):
    file = save_checkpoint(tmp_path / "m", PARAMS, CFG, format)
    begin = {"open_clip": {"image": "visual.trunk.", "text": "text."}, "big_vision": {"image": "img/", "text": "txt/"}}
    own = begin[format][side]
    if format == "open_clip":
        from safetensors.numpy import load_file, save_file

        file = file / "open_clip_model.safetensors"
        found = load_file(file)
        save_file({name: value for name, value in found.items() if name.startswith(own)}, file)
        if side == "image":  # timm's own file
            bare = tmp_path / "timm.safetensors"
            save_file({n.removeprefix(own): v for n, v in found.items() if n.startswith(own)}, bare)
            assert same(load_checkpoint(bare).params, "image/")
    else:
        with np.load(file) as content:
            kept = {name: content[name] for name in content.files if name.startswith(own)}
        np.savez(file, **kept)
    checkpoint = load_checkpoint(file)
    assert same(checkpoint.params, f"{side}/") and checkpoint.sides == (side,)


def test_a_tower_without_its_pooling_says_so(place):
    found = tensors(place)
    write(place, {n: v for n, v in found.items() if n.startswith("vision_model.") and ".head." not in n})
    refused(place, "without its attention pooling")


def test_a_tower_of_another_model_called_the_same(place):
    """Idefics has a vision_model of SigLIP's beside a text_model of another kind: only the first is one of ours."""
    found = {f"model.{n}": v for n, v in tensors(place).items() if n.startswith("vision_model.")}
    write(place, found | {"model.text_model.layers.0.mlp.up_proj.weight": np.ones((2, 2), np.float32)})
    assert same(load_checkpoint(place).params, "image/")


def test_a_broken_whole_model_does_not_turn_into_a_tower(place):
    found = tensors(place)
    found.pop("text_model.embeddings.token_embedding.weight")
    refused(write(place, found), "missing: text_model.embeddings.token_embedding.weight", "1 tensor was not saved")


ORDERS = {"ohwi": (0, 2, 3, 1), "hwio": (2, 3, 1, 0), "ihwo": (1, 2, 3, 0), "ohiw": (0, 2, 1, 3)}
KERNEL = "vision_model.embeddings.patch_embedding.weight"


@pytest.mark.parametrize("order", ORDERS)
def test_a_kernel_with_its_axes_in_another_order_is_turned(place, order):
    """As MLX and TensorFlow have it."""
    found = tensors(place)
    write(place, found | {KERNEL: found[KERNEL].transpose(ORDERS[order])})
    checkpoint = load_checkpoint(place)
    assert same(checkpoint.params) and order in checkpoint.notes[0]


def test_a_kernel_whose_axes_no_shape_tells(tmp_path):
    from dataclasses import replace

    from siglip_ref.architecture.sizes import Tower

    cfg = replace(CFG, image=Tower(4, 1, 5, 2), text=Tower(4, 1, 5, 2))  # as wide as a patch: 4
    place = save(tmp_path / "m", cfg)
    assert load_checkpoint(place).config.image.width == 4
    found = tensors(place)
    write(place, found | {KERNEL: found[KERNEL].transpose(0, 2, 3, 1)})
    refused(place, "two of them equally long", "ohwi or")


def test_a_flattened_kernel_is_refused(place):
    found = tensors(place)
    write(place, found | {KERNEL: found[KERNEL].reshape(10, -1)})
    refused(place, KERNEL, "in another form: flattened")


def test_all_matrices_transposed_are_refused_because_square_ones_cannot_be_told(place):
    found = tensors(place)
    write(place, {n: np.ascontiguousarray(v.T) if v.ndim == 2 and "fc" in n else v for n, v in found.items()})
    refused(place, "axes in another order", "those of square matrices too")


CAUSES = {
    "a CLIP model": lambda found: found | {"visual_projection.weight": np.ones((2, 2), np.float32)},
    "more than a SigLIP has": lambda found: found | {"classifier.weight": np.ones((2, 2), np.float32)},
    "quantised weights": lambda found: found | {"text_model.head.weight_scale": np.ones(1, np.float32)},
    "without the scale or the bias": lambda found: {n: v for n, v in found.items() if n != "logit_bias"},
    "a wrapper that puts 'net.'": lambda found: {
        n.replace("text_model.head", "text_model.net.head"): v for n, v in found.items()
    },
    "merge_and_unload": lambda found: found | {"text_model.head.lora_A.weight": np.ones((2, 12), np.float32)},
    "were not saved": lambda found: {n: v for n, v in found.items() if ".layers.1." not in n},
}


@pytest.mark.parametrize("cause", CAUSES)
def test_causes_follow_from_what_was_found(place, cause):
    refused(write(place, CAUSES[cause](tensors(place))), cause)
