"""The last stage of a model at several scales and biases: the same embeddings, each time other logits.

What is wrong only at a released model's scale (a clamp at 100), at a bias of another sign, or where exp overflows and a
sigmoid becomes zero, stays hidden at moderate logits. The towers know neither scale nor bias: their embeddings are the
same each time, and so is the way back through them. So a model is run once more for each scale, and of that run the
logits, the loss, the gradients of scale and bias, and those of the parameters next to the embeddings are compared.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.arithmetic.rounded import Rounded
from siglip_ref.check.model.adapters import Adapter, Dtype, Run
from siglip_ref.check.model.diagnosis.range import can_be_shifted, shifted
from siglip_ref.check.model.judge import Judge, judged_rows, rows_of
from siglip_ref.check.model.noise import allowed
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.reference import UNIT_ROUNDOFF, Reference
from siglip_ref.mistakes import Reference as Specification
from siglip_ref.mistakes import reference as specification_with
from siglip_ref.noise.measure import FLOAT64, measure
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops
from siglip_ref.report.compare import Row, compare

POOLED = ("image/pool", "text/head", "text/pool")  # activations from which the last stage starts
EMBEDS = ("image/embed", "text/embed")
# how far logits reach: beyond it exp(-x) is zero in the format; and no scale beyond exp of MOST
REACH = {"float64": 800.0, "float32": 130.0, "bfloat16": 130.0, "float16": 130.0}
MOST = {"float64": 11.0, "float32": 9.0, "bfloat16": 9.0, "float16": 9.0}
# a bias, and beside a small scale the logits, at which softplus still differs from a straight line
STEEP = {"float64": 24.0, "float32": 11.0, "bfloat16": 3.0, "float16": 3.0}
# log 112, as the format holds it
LOG_112 = {"float64": 4.718498871295094, "float32": 4.718498706817627, "bfloat16": 4.71875, "float16": 4.71875}


@dataclass(frozen=True)
class Scale:
    """Scale and bias of one run. name: why it is there; shifted: on weights of the same function, see `model_range`."""

    name: str
    log_scale: float
    bias: float
    shifted: bool = False

    @property
    def label(self) -> str:
        """As reports print it.

        >>> Scale("released scale", math.log(112), -16.0).label
        'released scale (112, bias -16)'
        """
        return f"{self.name} ({self.scale:.3g}, bias {self.bias:.3g})"

    @property
    def scale(self) -> float:
        """What the similarity is multiplied by; infinite where float64 cannot hold it."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.log_scale))


OWN, RELEASED, LARGE, SMALL = "own scale", "released scale", "large logits", "small scale"


def scales_of(exact: Reference, probe: Probe, dtype: Dtype, coarsest: Dtype = "float64") -> list[Scale]:
    """The scales and biases at which a model is judged: its own first, see the names above.

    exact : the reference on the probe; its embeddings say at which scale logits become large
    coarsest : what some step of the model is forced to: one of float16 cannot hold shifted weights
    """
    in_range = dtype in ("float64", "float32") and coarsest != "float16"
    if "log_scale" not in probe.params:  # a tower alone knows none
        return [Scale(OWN, 0.0, 0.0)]
    own = Scale(OWN, float(probe.params["log_scale"]), float(probe.params["bias"]))
    similarity = exact.activations["image/embed"] @ exact.activations["text/embed"].T
    if not np.isfinite(similarity).all():
        return [own]
    return [
        own,
        Scale(RELEASED, LOG_112[dtype], -16.0),
        _large(similarity, REACH[dtype], MOST[dtype]),
        Scale(SMALL, -0.75, STEEP[dtype], shifted=in_range and can_be_shifted(probe.params)),
    ]


def _large(similarity: Array, reach: float, most: float) -> Scale:
    """Where some pairs of both kinds, those that belong together and the others, are beyond reach on both sides."""
    own, others = np.diag(similarity), similarity[~np.eye(len(similarity), dtype=bool)]
    steps = np.linspace(own.min(), own.max(), 65)
    room = [min(own.max() - at, at - own.min(), others.max() - at, at - others.min()) for at in steps]
    best = int(np.argmax(room))
    wanted = math.log(reach / room[best]) if room[best] > 0 else most
    log_scale = min(math.ceil(8 * wanted) / 8, most)
    return Scale(LARGE, log_scale, _eight_bits(-math.exp(log_scale) * float(steps[best])))


def _eight_bits(x: float) -> float:
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(mantissa * 256) / 256, exponent)


def run_at(adapter: Adapter, probe: Probe, scales: Sequence[Scale], dtype: Dtype) -> list[Run]:
    """The model's run at each scale; an Adapter with a method `runs` makes them together."""
    points = [at(probe, scale).params for scale in scales]
    together: Callable[..., list[Run]] | None = getattr(adapter, "runs", None)
    if together:
        return together(points, probe.given, probe.tokens, dtype)
    return [adapter.run(params, probe.given, probe.tokens, dtype) for params in points]


def at(probe: Probe, scale: Scale) -> Probe:
    """The same probe with another scale and bias."""
    if scale.name == OWN:
        return probe
    params = shifted(probe.params) if scale.shifted else dict(probe.params)
    for name in ("log_scale", "bias"):  # weights of its own may be held in float32, whatever it computes in
        exact = np.float64(getattr(scale, name))
        kept = exact.astype(params[name].dtype)
        params[name] = np.reshape(kept if kept == exact else exact, params[name].shape)
    return replace(probe, params=params)


def last_stage(
    given: Mapping[str, Array],
    cfg: Config,
    conventions: Conventions,
    spec: Specification | None = None,
    ops: Ops | None = None,
) -> dict[str, Array]:
    """Logits, loss, and the gradients next to the embeddings, from what is pooled.

    Parameters
    ----------
    given : the activations POOLED, log_scale and bias
    spec : the reference, or a copy of it with mistakes; ops : its operations in another arithmetic

    Returns
    -------
    dict : "logits", "loss", and gradients under "d " and the name of their parameter
    """
    spec = spec or specification_with()
    ops = ops or spec.ops
    kind, eps = conventions.embed_norm, conventions.embed_norm_eps
    image, image_cache = ops.normalize.forward(given["image/pool"], kind, eps)
    text, text_cache = ops.normalize.forward(given["text/head" if cfg.text_head else "text/pool"], kind, eps)
    log_scale, bias = given["log_scale"], given["bias"]
    found = spec.loss.sigmoid_loss(image, text, log_scale, bias, ops=ops)
    d_image = ops.normalize.backward(found.d_image_embed, image_cache)
    d_text = ops.normalize.backward(found.d_text_embed, text_cache)
    out = {
        "logits": np.exp(log_scale) * (image @ text.T) + bias,
        "loss": found.loss,
        "d log_scale": found.d_log_scale,
        "d bias": found.d_bias,
        "d image/pool/mlp/out/bias": d_image.sum(0),
    }
    if not cfg.text_head:
        return out | {"d text/norm/beta": d_text.sum(0)}
    return out | {"d text/head/bias": d_text.sum(0), "d text/head/kernel": given["text/pool"].T @ d_text}


def given_at(scale: Scale, pooled: Mapping[str, Array]) -> dict[str, Array]:
    """What the last stage starts from, in float64."""
    given = {name: np.asarray(pooled[name], np.float64) for name in POOLED if name in pooled}
    return given | {"log_scale": np.float64(scale.log_scale), "bias": np.float64(scale.bias)}


def judge_at(scale: Scale, judge: Judge, cfg: Config, conventions: Conventions) -> Judge:
    """The judge of a run at another scale, from that of the model's own.

    What reaches the last stage has the noise of the towers, which is drawn here, beside the rounding of its own steps.
    """
    given = given_at(scale, judge.exact.activations)
    exact = last_stage(given, cfg, conventions)
    regime = judge.coarsest if UNIT_ROUNDOFF[judge.coarsest] > UNIT_ROUNDOFF[judge.dtype] else judge.dtype
    random = np.random.default_rng(11)
    reach = {name: judge.noise[name] * np.max(np.abs(value)) for name, value in given.items() if name in POOLED}

    def compute(arrays: dict[str, Array], ops: Ops) -> dict[str, Array]:
        # float64's noise is measured in float32, and scaled
        finer = FLOAT64 if regime == "float64" and isinstance(arrays["bias"], Rounded) else 1.0
        moved = {
            name: arrays[name] + random.uniform(-1, 1, arrays[name].shape) * size / finer
            for name, size in reach.items()
        }
        return last_stage(arrays | moved, cfg, conventions, ops=ops)

    found = measure(compute, given, exact, regime, few=True)
    tops = {name: float(np.max(np.abs(value))) for name, value in exact.items()}
    # where all terms cancel there is nothing that an error could be measured by
    noise = {name: float(found.absolute[name]) / top if top else np.inf for name, top in tops.items()}
    limits = {name: allowed(level) for name, level in noise.items()}
    gradients = {name.removeprefix("d "): x for name, x in exact.items() if name.startswith("d ")}
    of_grad = {name: limits[f"d {name}"] for name in gradients}
    by_name = {name.removeprefix("d "): level for name, level in noise.items()}
    overflows = frozenset(name.removeprefix("d ") for name in found.overflows)
    reference = Reference(exact["loss"], {"logits": exact["logits"]}, gradients, {})
    return replace(judge, exact=reference, noise=by_name, of_value=limits, of_grad=of_grad, overflows=overflows)


@dataclass(frozen=True)
class Judged:
    """The runs of a model at each scale, the judges of each (the first: of everything), and every row: those of another
    scale than the model's own say at which."""

    runs: Sequence[Run]
    scales: Sequence[Scale]
    judges: Sequence[Judge]
    details: list[Row]

    @property
    def moved(self) -> Run | None:
        """The run on shifted weights, if there is one."""
        return next((run for run, scale in zip(self.runs, self.scales, strict=True) if scale.shifted), None)

    @property
    def with_the_same_embeddings(self) -> "Judged":
        """Without the run on shifted weights, where that gives the last stage something else than the others."""
        if self.moved is None or all(_alike(name, self.moved, self.runs[0], self.judge) for name in EMBEDS):
            return self
        kept = [k for k, scale in enumerate(self.scales) if not scale.shifted]
        labels = {"", *(self.scales[k].label for k in kept)}
        rows = [row for row in self.details if row.probe in labels]
        runs, scales = [self.runs[k] for k in kept], [self.scales[k] for k in kept]
        return Judged(runs, scales, [self.judges[k] for k in kept], rows)

    @property
    def judge(self) -> Judge:
        """Of the run at the model's own scale."""
        return self.judges[0]


def _alike(name: str, one: Run, other: Run, judge: Judge) -> bool:
    if name not in one.activations or name not in other.activations:
        return True
    return compare(name, one.activations[name], other.activations[name], judge.of_value[name]).right


def judged_at(
    runs: Sequence[Run], scales: Sequence[Scale], judge: Judge, cfg: Config, conventions: Conventions
) -> Judged:
    """Every run held against what is right at its scale; judge: of the run at the model's own."""
    judges = [judge, *(judge_at(scale, judge, cfg, conventions) for scale in scales[1:])]
    rows = judged_rows(runs[0], judge)
    for run, scale, one in zip(runs[1:], scales[1:], judges[1:], strict=True):
        rows += rows_of(run, one, scale.label)
    return Judged(runs, scales, judges, rows)


def one_each(details: Sequence[Row]) -> list[Row]:
    """One row for each tensor: at the model's own scale, or where only another judges it, or finds it wrong."""
    rows = {(row.name, row.kind): row for row in details if not row.probe}
    for row in details:
        before = rows.setdefault((row.name, row.kind), row)
        if (before.right and row.verdict == "FAIL") or (before.verdict == "out of range" and row.right):
            rows[row.name, row.kind] = row
    return list(rows.values())
