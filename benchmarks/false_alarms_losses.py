"""Runs of right losses: Torch, JAX and NumPy forms, at golden vectors and at probes that nobody has seen."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import cycle
from pathlib import Path
from typing import Any

from false_alarms_count import Trial, verdict_on
from false_alarms_seeds import HELD_OUT, drawn_probe, loss_order

from siglip_ref.check.call.frameworks import Framework, Inputs, Setting, load_framework
from siglip_ref.check.engine.expected.expected import Convention, Truth, truth
from siglip_ref.check.engine.expected.expected import judge as judge_probe
from siglip_ref.check.engine.expected.probes import WIDE_FORMATS
from siglip_ref.check.engine.expected.repeated import REAL, repeated_probe
from siglip_ref.check.files.dump import judge as judge_dump
from siglip_ref.check.loss.check import check_loss
from siglip_ref.model.loss import sigmoid_loss
from siglip_ref.report.compare import Row
from siglip_ref.vectors.store import Vector, packaged

PLAIN, LINEAR, RAW = Convention("log", "unit"), Convention("linear", "unit"), Convention("log", "raw")
RAW_WITH_EPS = replace(RAW, norm="additive")
NAMES = ("image_embed", "text_embed", "log_scale", "bias")
DRAWN = 24  # probes; each with several orders
COMPILED = {"torch.compile": 3, "jax": 6}  # fewer, where every shape is compiled

# dtype in words: the settings that are taken in turn
SETTINGS = {
    "float64": [Setting("float64", "float64", "cpu", False)],
    "float32": [Setting("float32", "float32", "cpu", False)],
    "bfloat16": [Setting("bfloat16", scalars, "cpu", False) for scalars in ("float32", "bfloat16")],
    "float16": [Setting("float16", scalars, "cpu", False) for scalars in ("float32", "float16")],
    "autocast bfloat16": [Setting("bfloat16", "float32", "cpu", True)],
    "autocast float16": [Setting("float16", "float32", "cpu", True)],
}
DTYPES = tuple(SETTINGS)[:4]


@dataclass(frozen=True)
class Form:
    """A right loss. known: it helped to set the tolerances."""

    name: str
    fn: Callable[..., Any]
    convention: Convention
    known: bool


def torch_forms() -> list[Form]:
    import false_alarms_torch as new
    import torch

    sys.path.append(str(Path(__file__).parents[1] / "tests" / "interop"))
    import torch_losses as old

    torch.set_num_threads(1)
    others = {
        old.normalising: RAW,
        old.normalising_with_eps: RAW_WITH_EPS,
        old.linear_scale: LINEAR,
        old.RIGHT[-1]: LINEAR,  # open_clip's
    }
    known = [Form(_name(fn), fn, others.get(fn, PLAIN), True) for fn in old.RIGHT]
    found = [
        (fn, convention)
        for kind, convention in ((new.PLAIN, PLAIN), (new.LINEAR, LINEAR), (new.RAW, RAW))
        for fn in kind
    ]
    return known + [Form(f"{_name(fn)} (new)", fn, convention, False) for fn, convention in found]


def compiled_forms() -> list[Form]:
    """Two forms by torch.compile, whose kernels keep narrow numbers in float32 from one operation to the next."""
    import false_alarms_torch as new
    import torch

    torch.set_num_threads(1)
    torch._dynamo.config.cache_size_limit = 1000
    return [Form(f"{_name(fn)}, compiled", torch.compile(fn), PLAIN, False) for fn in (new.logaddexp, new.step_by_step)]


def jax_forms() -> list[Form]:
    import false_alarms_jax as new

    sys.path.append(str(Path(__file__).parents[1] / "tests" / "interop"))
    import test_loss_jax as old

    known = [(old.plain, PLAIN), (old.big_vision, RAW_WITH_EPS), (old.by_rows, PLAIN), (old.by_hand, PLAIN)]
    known += [(old.positives_by_rows, PLAIN)]
    found = [(fn, convention) for kind, convention in ((new.PLAIN, PLAIN), (new.RAW, RAW)) for fn in kind]
    return [Form(_name(fn), fn, convention, True) for fn, convention in known] + [
        Form(f"{_name(fn)} (new)", fn, convention, False) for fn, convention in found
    ]


def numpy_forms() -> list[Form]:
    from siglip_ref.fast.loss import sigmoid_loss as fast

    losses = {"reference": sigmoid_loss, "reference in tiles": partial(sigmoid_loss, tile=5), "fast": fast}
    return [Form(name, fn, PLAIN, False) for name, fn in losses.items()]


FORMS = {"torch": torch_forms, "torch.compile": compiled_forms, "jax": jax_forms, "numpy": numpy_forms}


def runs(family: str, dtype: str, least: int, probes: int = DRAWN) -> Iterator[Trial]:
    """At least `least` runs of each form: a half at golden vectors (where the form answers them), the rest drawn."""
    framework = load_framework(family.split(".")[0])
    probes = min(probes, COMPILED.get(family, probes))
    for form in FORMS[family]():
        with framework.environment(form.fn, SETTINGS[dtype][0]):
            golden = list(_golden(form, framework, dtype, family == "torch.compile"))
            share = least // 2 if golden else 0
            for chosen, wanted in ((golden, share), (list(_drawn(form, framework, dtype, probes)), least - share)):
                done = 0
                for seed in range(HELD_OUT, HELD_OUT + 10 * least):
                    if done >= wanted or not chosen:
                        break
                    for vector, run in chosen[:wanted]:
                        trial = Trial(f"{family}: {form.name}", dtype, vector, seed, form.known, *run(seed))
                        done += trial.judged
                        yield trial


def whole_checks(dtype: str, least: int) -> Iterator[Trial]:
    """`check_loss` as users call it, on every Torch form: its convention found by trying, all probes, the contract."""
    forms, setting = torch_forms(), SETTINGS[dtype][0]
    precision = "autocast" if setting.autocast else "pure"
    for seed in range(HELD_OUT, HELD_OUT + -(-least // len(forms))):
        for form in forms:
            fn = _reordering(form.fn, seed)
            report = check_loss(fn, "torch", setting.dtype, scalar_dtype=setting.scalar_dtype, precision=precision)
            name = f"whole check_loss: {len(forms)} torch forms"
            yield Trial(name, dtype, form.name, seed, False, report.details, report.verdict)


def real_size(dtype: str, least: int) -> Iterator[Trial]:
    """Every Torch form at 4,100 pairs, in another order of pairs and dimensions for each seed."""
    forms, setting, framework = torch_forms(), SETTINGS[dtype][0], load_framework("torch")
    probe = repeated_probe(REAL, None, setting.dtype, setting.scalar_dtype)
    assert probe is not None
    for form in forms:
        right = truth(probe, form.convention, setting)
        scale = probe.scale if form.convention.scale == "linear" else probe.log_scale
        given = Inputs(probe.image_embed, probe.text_embed, scale, probe.bias)
        with framework.environment(form.fn, setting):
            for seed in range(HELD_OUT, HELD_OUT + -(-least // len(forms))):
                order = loss_order(seed, probe.shape)
                got = framework.call(form.fn, order.inputs(given), setting, "plain")
                rows = judge_probe(order.outcome(got), right, probe.label)
                name = f"4,100 pairs: {len(forms)} torch forms"
                yield Trial(name, dtype, f"{form.name}, {probe.label}", seed, False, rows, verdict_on(rows))


def _reordering(fn: Callable[..., Any], seed: int) -> Callable[..., Any]:
    """The loss with its inputs put into another order inside, so that autograd brings the gradients back."""
    import torch

    def reordered(x: Any, y: Any, scale: Any, bias: Any) -> Any:
        order = loss_order(seed, x.shape)
        pairs, dims = torch.from_numpy(order.pairs), torch.from_numpy(order.dims)
        signs = torch.from_numpy(order.signs).to(x.dtype)
        return fn(*(rows[pairs][:, dims] * signs for rows in (x, y)), scale, bias)

    return reordered


Run = Callable[[int], tuple[Sequence[Row], str]]  # of a seed; what the check says
FEW = ("loss/balanced-b6-d13", "loss/trained-b11-d5", "loss/saturated-wrong")


def _golden(form: Form, framework: Framework, dtype: str, few: bool) -> Iterator[tuple[str, Run]]:
    """The certified vectors of the whole loss, judged as `check dump` judges."""
    for vector in packaged().vectors.values():
        answers = vector.task == "sigmoid_loss" and form.convention.embeddings == "unit" and dtype in vector.exact_in
        if answers and (not few or vector.id in FEW):
            yield vector.id, partial(_golden_run, form, framework, dtype, vector)


def _golden_run(form: Form, framework: Framework, dtype: str, vector: Vector, seed: int) -> Any:
    a = vector.inputs
    order = loss_order(seed, a["image_embed"].shape)
    fn = form.fn if form.convention.scale == "log" else _exponentiating(form.fn)
    given = Inputs(a["image_embed"], a["text_embed"], float(a["log_scale"]), float(a["bias"]))
    got = order.outcome(framework.call(fn, order.inputs(given), Setting(dtype, dtype, "cpu", False), "plain"))
    tensors = {"loss": got.loss} | {f"d_{name}": value for name, value in got.gradients.items() if value is not None}
    report = judge_dump(vector, tensors, dtype, form.name)
    return report.details, report.verdict


@lru_cache(maxsize=64)
def _exponentiating(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y, log_scale, bias: fn(x, y, log_scale.exp(), bias)


def _drawn(form: Form, framework: Framework, dtype: str, probes: int) -> Iterator[tuple[str, Run]]:
    """Probes that are drawn, with truth and noise made for them by `check_loss`'s own functions."""
    raw = form.convention.embeddings == "raw"
    for seed, setting in zip(range(HELD_OUT, HELD_OUT + probes), cycle(SETTINGS[dtype]), strict=False):
        yield f"drawn {seed}", partial(_drawn_run, form, framework, setting, seed, raw)


def _drawn_run(form: Form, framework: Framework, setting: Setting, drawn: int, raw: bool, seed: int) -> Any:
    probe, right = _truth(drawn, raw, form.convention, setting)
    order = loss_order(seed, probe.shape)
    scale = probe.scale if form.convention.scale == "linear" else probe.log_scale
    given = order.inputs(Inputs(probe.image_embed, probe.text_embed, scale, probe.bias))
    rows = judge_probe(order.outcome(framework.call(form.fn, given, setting, "plain")), right, probe.label)
    return rows, verdict_on(rows)


@lru_cache(maxsize=4096)
def _truth(drawn: int, raw: bool, convention: Convention, setting: Setting) -> tuple[Any, Truth]:
    full = setting.dtype if setting.dtype in WIDE_FORMATS and not setting.autocast else None
    probe = drawn_probe(drawn, raw, full)
    return probe, truth(probe, convention, setting)


def _name(fn: object) -> str:
    return str(getattr(fn, "__name__", type(fn).__name__)).replace("_", " ")
