"""SigLIP 2's recipe beside Torch's decoder layer, Torch's derivatives, and lightly's losses, in float64."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from no_torchvision import import_without
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from siglip_ref.architecture.sizes import Tower
from siglip_ref.ops.elementary import prefixed, subtree
from siglip_ref.siglip2 import RECIPE, Momentum, Target, captioning, momentum_at

dino, ibot, heads, scheduler = import_without(
    "lightly.loss.dino_loss", "lightly.loss.ibot_loss", "lightly.models.modules.heads", "lightly.utils.scheduler"
)

TOLERANCE = 1e-11  # of each tensor's largest number
WARM = 0.0625  # lightly keeps the teacher's temperature, and one over the number of patches, in float32
TOWER, WORDS, PLACES = Tower(12, 2, 17, 2), 29, 9

Arrays = dict[str, Any]


def drawn(shape: tuple[int, ...], key: int, size: float = 1.0) -> Any:
    return np.asarray(size * np.random.default_rng(key).standard_normal(shape))


def tensor(value: Any) -> Any:
    return torch.tensor(value, requires_grad=np.asarray(value).dtype.kind == "f")


def too_far(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    """Tensors that deviate; all of one are among the other's."""
    assert ours.keys() == theirs.keys()
    off = {name: np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max() for name in ours}
    return {name: error for name, error in off.items() if not error <= TOLERANCE}


def _decoder_weights() -> Arrays:
    """Without the biases that big_vision's decoder does not have; the image is as wide as the decoder, as in Torch."""
    width, shapes = TOWER.width, dict[str, tuple[int, ...]]()
    for layer in range(TOWER.depth):
        block = {f"norm{i}/gamma": (width,) for i in (1, 2, 3)}
        block |= {
            f"{kind}/{part}/kernel": (width, width) for kind in ("self", "cross") for part in ("q", "k", "v", "out")
        }
        block |= {"mlp/in/kernel": (width, TOWER.mlp), "mlp/out/kernel": (TOWER.mlp, width)}
        shapes |= prefixed(f"block{layer:02d}", block)
    shapes |= {"token": (WORDS + 1, width), "position": (PLACES, width), "norm/gamma": (width,), "norm/beta": (width,)}
    shapes |= {"out/kernel": (width, WORDS), "out/bias": (WORDS,)}
    return {name: drawn(shape, 10 + i, 0.4) + name.endswith("gamma") for i, (name, shape) in enumerate(shapes.items())}


def _layer(weights: Mapping[str, Any]) -> torch.nn.Module:
    """Torch's layer with these weights as the parameters that it computes with."""
    layer = torch.nn.TransformerDecoderLayer(
        TOWER.width, TOWER.heads, TOWER.mlp, 0.0, lambda x: functional.gelu(x, approximate="tanh"), 1e-6,
        batch_first=True, norm_first=True, bias=False, dtype=torch.float64,
    )  # fmt: skip
    for kind, attention in (("self", layer.self_attn), ("cross", layer.multihead_attn)):
        fused = np.concatenate([weights[f"{kind}/{part}/kernel"].T for part in "qkv"])
        attention.in_proj_weight.data = torch.tensor(fused)
        attention.out_proj.weight.data = torch.tensor(weights[f"{kind}/out/kernel"].T)
    for name, linear in (("in", layer.linear1), ("out", layer.linear2)):
        linear.weight.data = torch.tensor(weights[f"mlp/{name}/kernel"].T)
    for i, norm in enumerate((layer.norm1, layer.norm2, layer.norm3), 1):
        norm.weight.data = torch.tensor(weights[f"norm{i}/gamma"])
    return layer


def _gradients_of(layer: Any) -> Arrays:
    """Torch's gradients by our names."""
    found = {f"norm{i}/gamma": norm.weight.grad for i, norm in enumerate((layer.norm1, layer.norm2, layer.norm3), 1)}
    for kind, attention in (("self", layer.self_attn), ("cross", layer.multihead_attn)):
        split = dict(zip("qkv", attention.in_proj_weight.grad.chunk(3), strict=True))
        split["out"] = attention.out_proj.weight.grad
        found |= {f"{kind}/{part}/kernel": grad.T for part, grad in split.items()}
    found |= {"mlp/in/kernel": layer.linear1.weight.grad.T, "mlp/out/kernel": layer.linear2.weight.grad.T}
    return {name: value.numpy() for name, value in found.items()}


def test_the_caption_loss_agrees_with_torch_s_decoder_layer() -> None:
    """Mixed modes, prefixes, padding of all lengths, two layers, chunks: the loss and the gradient of every tensor."""
    weights, context = _decoder_weights(), drawn((5, 7, TOWER.width), 3)
    place, length = np.arange(PLACES), np.array([9, 2, 5, 7, 3])[:, None]
    words = np.random.default_rng(4).integers(2, 12, (5, PLACES))
    labels = np.where(place < length - 1, words, np.where(place == length - 1, 1, 0))
    given = Target(labels, (labels != 0) & (place >= np.array([0, 0, 2, 2, 1])[:, None]), np.array([0, 1, 0, 1, 0]) > 0)

    choices = captioning("big_vision", TOWER, rows=7, columns=5)
    loss, cache = RECIPE.caption_loss.forward(given, context, weights, choices)
    d_context, ours = RECIPE.caption_loss.backward(np.array(1.0), cache)

    theirs = {name: tensor(value) for name, value in weights.items() if not name.startswith("block")}
    memory = tensor(context)
    before = np.concatenate([np.zeros((5, 1), int), labels[:, :-1]], 1)
    x = theirs["token"][np.where(given.parallel[:, None], WORDS, before)] + theirs["position"]
    hidden = ~(given.parallel[:, None, None] | np.tri(PLACES, dtype=bool)).repeat(TOWER.heads, 0)
    layers = [_layer(subtree(weights, f"block{i:02d}")) for i in range(TOWER.depth)]
    for layer in layers:
        x = layer(x, memory, tgt_mask=torch.tensor(hidden))
    states = functional.layer_norm(x, (TOWER.width,), theirs["norm/gamma"], theirs["norm/beta"], 1e-6)
    logits = states @ theirs["out/kernel"] + theirs["out/bias"]
    each = functional.cross_entropy(logits.transpose(1, 2), torch.tensor(labels), reduction="none")
    counted = torch.tensor(given.counted)
    expected = ((each * counted).sum(1) / counted.sum(1).clamp(min=1)).mean()
    expected.backward()
    grads = {name: value.grad.numpy() for name, value in theirs.items()} | {"context": memory.grad.numpy()}
    for i, layer in enumerate(layers):
        grads |= prefixed(f"block{i:02d}", _gradients_of(layer))
    assert abs(loss - expected.item()) <= 1e-14 * expected.item()
    assert not too_far(ours | {"context": d_context}, grads)


def test_label_smoothing_and_the_mean_over_tokens_agree_with_torch() -> None:
    states, kernel, bias = (drawn(shape, k) for k, shape in enumerate(((4, 6, 5), (5, 11), (11,))))
    labels = np.random.default_rng(3).integers(0, 11, (4, 6))
    losses, loss_cache = RECIPE.token_loss.forward(states, kernel, bias, labels, 0.1, 5, 4)
    loss, cache = RECIPE.average.forward(losses, labels != 0, "token")
    ours = RECIPE.token_loss.backward(RECIPE.average.backward(np.array(1.0), cache), loss_cache)
    theirs = [tensor(x) for x in (states, kernel, bias)]
    logits = (theirs[0] @ theirs[1] + theirs[2]).flatten(0, 1)
    # Torch's share of 1 / V includes the label; big_vision's 1 / (V - 1) goes to the others
    smoothing = 0.1 * 11 / 10
    flat = torch.tensor(labels).flatten()
    expected = functional.cross_entropy(logits, flat, ignore_index=0, label_smoothing=smoothing)
    expected.backward()
    assert abs(loss - expected.item()) <= 1e-13 * expected.item()
    names = ("states", "kernel", "bias")
    found = {name: x.grad.numpy() for name, x in zip(names, theirs, strict=True)}
    assert not too_far(dict(zip(names, ours, strict=True)), found)


def _head_weights() -> Arrays:
    widths, weights = (10, 14, 14, 6), Arrays()
    for i in range(3):
        weights[f"layer{i}/kernel"] = drawn(widths[i : i + 2], 20 + i, 0.4)
        weights[f"layer{i}/bias"] = drawn((widths[i + 1],), 30 + i)
    return weights | {"prototypes/direction": drawn((11, 6), 40), "prototypes/gain": drawn((11,), 41, 0.1) + 1}


def test_the_head_agrees_with_lightly_s() -> None:
    weights, x = _head_weights(), drawn((5, 10), 1)
    scores, cache = RECIPE.head.forward(x, weights, "erf", 1e-12)
    d_out = drawn(scores.shape, 2)
    d_x, ours = RECIPE.head.backward(d_out, cache)

    head = heads.DINOProjectionHead(10, 14, 6, 11, norm_last_layer=False).double()
    linears = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    for i, linear in enumerate(linears):
        linear.weight.data = torch.tensor(weights[f"layer{i}/kernel"].T)
        linear.bias.data = torch.tensor(weights[f"layer{i}/bias"])
    head.last_layer.weight_v.data = torch.tensor(weights["prototypes/direction"])
    head.last_layer.weight_g.data = torch.tensor(weights["prototypes/gain"][:, None])
    given = tensor(x)
    out = head(given)
    out.backward(torch.tensor(d_out))
    theirs = {"x": given.grad, "prototypes/direction": head.last_layer.weight_v.grad}
    theirs["prototypes/gain"] = head.last_layer.weight_g.grad[:, 0]
    for i, linear in enumerate(linears):
        theirs |= {f"layer{i}/kernel": linear.weight.grad.T, f"layer{i}/bias": linear.bias.grad}
    assert np.abs(scores - out.detach().numpy()).max() <= 1e-13
    assert not too_far(ours | {"x": d_x}, {name: value.numpy() for name, value in theirs.items()})


def _local(said: Any, centre: Any, views: Any) -> tuple[Any, Any]:
    """Our loss of local views (B, R, K), and the gradient of their scores."""
    target = RECIPE.centred(said, centre, WARM)
    entropies, entropy_cache = RECIPE.cross_entropy.forward(views, target[:, None], 0.1)
    loss, cache = RECIPE.average.forward(entropies, np.ones(views.shape[:2], bool), "example")
    return loss, RECIPE.cross_entropy.backward(RECIPE.average.backward(np.array(1.0), cache), entropy_cache)


def test_the_local_loss_agrees_with_lightly_s_but_for_the_diagonal() -> None:
    """lightly leaves out pairs of equal index, as DINO does, whose student sees the global views first.

    With SigLIP 2's lists, one global view and local ones, it drops the first local view; behind a view that stands in
    for it all count.
    """
    said, views, centre = drawn((4, 11), 1, 0.3), drawn((4, 3, 11), 2, 0.3), drawn((11,), 3, 0.1)
    criterion = dino.DINOLoss(11, teacher_temp=WARM).double()

    def theirs(students: list[Any]) -> Any:
        criterion.center = torch.tensor(centre)[None, None]
        return criterion([torch.tensor(said)], students)

    given = [tensor(views[:, r]) for r in range(3)]
    expected = theirs([torch.zeros(4, 11, dtype=torch.float64), *given])
    expected.backward()
    loss, d_views = _local(said, centre, views)
    assert abs(loss - expected.item()) <= 1e-13 * loss
    assert not too_far({"views": d_views}, {"views": np.stack([x.grad.numpy() for x in given], 1)})
    moved = RECIPE.centre_step(centre, said.sum(0), len(said), 0.9)
    assert np.allclose(criterion.center[0, 0], moved, rtol=1e-13)
    without_first, _ = _local(said, centre, views[:, 1:])
    assert abs(theirs([torch.tensor(views[:, r]) for r in range(3)]).item() - without_first) <= 1e-13 * loss
    assert abs(without_first - loss) > 1e-3 * loss


def test_the_mask_loss_agrees_with_lightly_s() -> None:
    """With unequal masks, one of them empty: a mean over each image's masked patches, then over all images."""
    said, scores, centre = drawn((4, 6, 11), 1, 0.3), drawn((4, 6, 11), 2, 0.3), drawn((11,), 3, 0.1)
    masked = np.random.default_rng(4).permuted(np.arange(6) < [[0], [1], [4], [2]], axis=1)
    target = RECIPE.centred(said, centre, WARM)
    entropies, entropy_cache = RECIPE.cross_entropy.forward(scores, target, 0.1)
    loss, cache = RECIPE.average.forward(entropies, masked, "example")
    ours = RECIPE.cross_entropy.backward(RECIPE.average.backward(np.array(1.0), cache), entropy_cache)

    criterion, given = ibot.IBOTPatchLoss(11, teacher_temp=WARM).double(), tensor(scores)
    criterion.center.center = torch.tensor(centre)[None]
    place = torch.tensor(masked)
    expected = criterion(torch.tensor(said)[place], given[place], place[:, None])
    expected.backward()
    assert abs(loss - expected.item()) <= 1e-13 * loss
    assert not too_far({"scores": ours}, {"scores": given.grad.numpy()})
    moved = RECIPE.centre_step(centre, said[masked].sum(0), int(masked.sum()), 0.9)  # the choice "masked"
    assert np.allclose(criterion.center.value[0], moved, rtol=1e-13)


def test_the_running_mean_agrees_with_torch_s_from_its_second_step_on() -> None:
    """Torch's first step copies the student, whatever the momentum."""
    student = torch.nn.Linear(3, 2).double()
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(student)
    teacher = {name: value.detach().numpy().copy() for name, value in student.named_parameters()}
    for k in range(3):
        for value in student.parameters():
            value.data += torch.tensor(drawn(tuple(value.shape), k))
        average.update_parameters(student)
        now = {name: value.detach().numpy() for name, value in student.named_parameters()}
        teacher = RECIPE.ema_step(teacher, now, 0.9)
    for name, value in average.module.named_parameters():
        np.testing.assert_allclose(teacher[name], value.detach().numpy(), rtol=1e-13)


def test_lightly_s_schedule_of_the_momentum_is_the_one_that_reaches_one() -> None:
    ours = [momentum_at(k, Momentum(0.996, "cosine to one", 10)) for k in range(10)]
    theirs = [scheduler.cosine_schedule(k, 10, 0.996, 1.0) for k in range(10)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-14)
