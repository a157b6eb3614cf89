"""Nothing that is not finite passes: generated ways through every check. 0 PASS, and no error but a UsageError.

A few of each run always, all of them nightly. Torch and JAX: tests/interop/test_not_finite_frameworks.py.
"""

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from not_finite import TARGETS, Calls, Way, cases, ways
from reference_adapter import ReferenceAdapter

import siglip_ref as sr
from siglip_ref.check.call.frameworks import ARGUMENTS, Setting
from siglip_ref.check.engine.expected.expected import CONVENTIONS
from siglip_ref.check.engine.subject import Answer
from siglip_ref.check.files import dump
from siglip_ref.check.files.checkpoint import check_checkpoint
from siglip_ref.check.loss import subject as loss_subject
from siglip_ref.check.model import subject as model_subject
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.ranks.check import calls_of
from siglip_ref.check.ranks.judge import Observed, judge_ranks
from siglip_ref.check.ranks.world import RankOutcome
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.model.optim import State, adamw_step
from siglip_ref.report.data import Report
from siglip_ref.use.preprocess import PREPROCESS
from siglip_ref.use.preprocess import pixels as pixels_of
from siglip_ref.vectors.store import Vector, packaged

DTYPES = ("float32", "float64", "bfloat16", "float16")
Params = dict[str, Any]


@pytest.fixture
def unexplained(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Leaves out what explains a failure, which is most of the time of a check that fails."""

    def leave_out() -> None:
        monkeypatch.setattr(loss_subject, "explained", lambda *_: Answer([]))
        monkeypatch.setattr(model_subject, "explain", lambda *_: ("FAIL", []))
        monkeypatch.setattr(dump, "_findings", lambda *_: [])

    return leave_out


def never_passes(check: Callable[[], Report]) -> str:
    """The verdict, or "refused"; a verdict that is NOT JUDGED says why."""
    try:
        report = check()
    except sr.UsageError:
        return "refused"
    assert report.verdict in ("FAIL", "NOT JUDGED"), report
    assert (report.unjudged is None) == (report.verdict == "FAIL")
    return report.verdict


def numpy_loss(way: Way) -> Callable[..., Any]:
    """The specification, spoilt before or after."""
    calls = Calls(way.when)

    def loss(*given: Any) -> Any:
        strikes, given = calls.strike(*given), list(given)
        if strikes and way.target in ("embedding", "tower", "scale", "bias"):
            place = {"embedding": 0, "tower": 1, "scale": 2, "bias": 3}[way.target]
            given[place] = way.spoil(given[place])
        value, *grads = sr.sigmoid_loss(*given)
        out = [np.asarray(x, given[0].dtype) for x in (value, *grads)]
        places = {"loss": [0], "gradient": [2], "gradients": [1, 2, 3, 4], "everything": range(5)}.get(way.target, [])
        for place in places if strikes else []:
            out[place] = way.spoil(out[place])
        return tuple(out)

    return loss


IN_A_LOSS = ("loss", "gradient", "gradients", "embedding", "tower", "scale", "bias", "everything")


@pytest.mark.parametrize(("way", "dtype", "whole"), cases(IN_A_LOSS, 4, DTYPES))
def test_numpy_losses(way: Way, dtype: str, whole: bool, unexplained: Callable[[], None]) -> None:
    if not whole:
        unexplained()
    assert never_passes(lambda: sr.check_loss(numpy_loss(way), "numpy", dtype)) == "FAIL"


@pytest.mark.parametrize(("way", "dtype", "whole"), cases(TARGETS, 2, DTYPES))
def test_models(way: Way, dtype: str, whole: bool, unexplained: Callable[[], None]) -> None:
    """What an Adapter brings back; with weights of its own that are none where the way is in them."""

    def spoil(run: Run) -> Run:
        values, grads = dict(run.activations), dict(run.grads)
        chosen = {
            "logits": ["logits"],
            "embedding": ["text/embed"],
            "tower": [name for name in values if name.startswith("image/")],
            "everything": list(values),
        }.get(way.target, [])
        values |= {name: way.spoil(values[name]) for name in chosen}
        many = {"gradient": ["text/block01/mlp/in/kernel"], "gradients": list(grads), "everything": list(grads)}
        grads |= {name: way.spoil(grads[name]) for name in many.get(way.target, [])}
        loss = way.spoil(run.loss) if way.target in ("loss", "everything") else run.loss
        return replace(run, loss=loss, activations=values, grads=grads)

    own = None
    if way.target in ("weights", "scale", "bias"):
        own = sr.init(sr.config("tiny"), dtype=np.float32)
        name = {"weights": "text/block00/attn/v/kernel", "scale": "log_scale", "bias": "bias"}[way.target]
        own[name] = way.spoil(own[name])
    if not whole:
        unexplained()
    adapter = ReferenceAdapter(spoil=spoil, own=own)
    never_passes(lambda: sr.check_model(adapter, dtype, "own" if own else "probe"))


IN_A_DUMP = ("loss", "gradient", "gradients", "logits", "embedding", "tower", "everything")


@pytest.mark.parametrize(("way", "dtype", "whole"), cases(IN_A_DUMP, 2, DTYPES))
def test_dumps(way: Way, dtype: str, whole: bool, unexplained: Callable[[], None]) -> None:
    """Three vectors that have such a tensor, other ones for every way; also where this tensor alone is given."""
    if not whole:
        unexplained()
    able = [(vector, _places(vector, way)) for vector in packaged().vectors.values() if dtype in vector.exact_in]
    able = [(vector, names) for vector, names in able if names]
    start = hash_of(way) % len(able)
    for vector, names in (able[start:] + able)[: 3 if whole else 6]:
        spoilt = {name: way.spoil(vector.expected[name]) for name in names}
        for given, partial in ((vector.expected | spoilt, False), (spoilt, True)):
            never_passes(lambda v=vector, g=given, p=partial: dump.judge(v, g, dtype, "", partial=p))  # type: ignore[misc]


def hash_of(way: Way) -> int:
    return zlib.crc32(str(way).encode())


def _places(vector: Vector, way: Way) -> list[str]:
    """The vector's tensors that a way speaks of."""
    gradients = [name for name in vector.expected if dump.kind_of(name)[0] == "gradient"]
    values = [name for name in vector.expected if name not in gradients]
    return {
        "loss": [name for name in values if name.split("/")[-1] == "loss"],
        "gradient": gradients[:1],
        "gradients": gradients,
        "logits": [name for name in values if name == "logits"],
        "embedding": [name for name in values if name.endswith(("embed", "out"))][:1],
        "tower": [name for name in values if name.startswith(("image/", "text/"))],
        "everything": list(vector.expected),
    }[way.target]


@pytest.mark.parametrize(
    ("way", "dtype", "whole"),
    cases(("gradient", "gradients", "scale", "bias", "weights", "everything"), 2, ("float32", "float64")),
)
def test_steps(way: Way, dtype: str, whole: bool) -> None:
    """An update that goes wrong in what it is given, or in what it returns, at the first step or the last."""
    rule = sr.AdamW(lr=1e-3, decay=0.1, max_norm=1.0)

    def step(params: Params, grads: Params, state: State | None) -> tuple[Params, State]:
        count = 0 if state is None else int(state.step) if hasattr(state, "step") else 1
        strikes = {"always": True, "once": state is None}.get(way.when, state is not None)
        if strikes and way.target in ("gradient", "gradients"):
            chosen = list(grads)[count % 3 :][: 1 if way.target == "gradient" else None]
            grads = grads | {name: way.spoil(grads[name]) for name in chosen}
        params, state = adamw_step(params, grads, state or State(), rule)
        names = {"scale": ["log_scale"], "bias": ["bias"], "weights": ["text/token"], "everything": list(params)}
        if strikes:
            params = params | {name: way.spoil(params[name]) for name in names.get(way.target, [])}
        return params, state

    never_passes(lambda: sr.check_step(step, rule, framework="numpy", dtype=dtype))


@pytest.mark.parametrize(("way", "dtype", "whole"), cases(("weights", "scale", "bias", "tower"), 3))
@pytest.mark.sampled(3)
def test_checkpoints(way: Way, dtype: str, whole: bool, tmp_path: Path) -> None:
    names = {"weights": "image/block00/mlp/in/kernel", "scale": "log_scale", "bias": "bias", "tower": "text/token"}
    cfg = replace(sr.config("tiny"), image_size=(20, 20))
    params = sr.init(cfg, dtype=np.float32)
    name = names[way.target]
    params[name] = way.spoil(params[name])
    save_checkpoint(tmp_path / "model", params, cfg)
    never_passes(lambda: check_checkpoint(tmp_path / "model"))


@pytest.mark.parametrize("factor", [1e30, 1e-40])
def test_checkpoints_whose_numbers_are_finite_and_whose_outputs_are_not(factor: float, tmp_path: Path) -> None:
    cfg = replace(sr.config("tiny"), image_size=(20, 20))
    params = {name: np.float32(factor) * value for name, value in sr.init(cfg, dtype=np.float32).items()}
    save_checkpoint(tmp_path / "a", params, cfg)
    assert check_checkpoint(tmp_path / "a").unjudged.why == "out of range"
    right = sr.init(cfg, dtype=np.float32)
    save_checkpoint(tmp_path / "right", right, cfg)
    assert check_checkpoint(tmp_path / "right").passed
    save_checkpoint(tmp_path / "b", right | {"log_scale": np.float32(200)}, cfg)
    assert check_checkpoint(tmp_path / "b").unjudged.tensors == ("finite/logits",)


@pytest.mark.parametrize(("way", "dtype", "whole"), cases(TARGETS, 2, every=4))
def test_preprocessing(way: Way, dtype: str, whole: bool) -> None:
    right = PREPROCESS["huggingface"]
    calls = iter(range(9))

    def fn(image: Any) -> Any:
        pixels = pixels_of(image, (32, 32), right)
        return way.spoil(pixels) if way.when == "always" or next(calls) == len(way.target) % 4 else pixels

    never_passes(lambda: sr.check_preprocess(fn))


@pytest.mark.parametrize(("way", "dtype", "whole"), cases(TARGETS, 3))
def test_ranks(way: Way, dtype: str, whole: bool) -> None:
    """Through the judge that all frameworks share; real processes: tests/interop."""
    setting = Setting("float32", "float32", "cpu", False)
    splits, probes = calls_of(3, True, ["log"], setting)
    observed = []
    for (_, probe), split in zip(probes, splits, strict=True):
        value, *grads = sr.sigmoid_loss(probe.image_embed, probe.text_embed, probe.log_scale, probe.bias)
        strikes = Calls(way.when).strike(probe.image_embed, probe.text_embed, probe.log_scale, probe.bias)
        strikes = split is splits[-1] if way.when == "again" else strikes
        of_ranks, start = [], 0
        for rank, size in enumerate(split.sizes):
            rows = slice(start, start := start + size)
            named = dict(zip(ARGUMENTS, (grads[0][rows], grads[1][rows], *grads[2:]), strict=True))
            loss = value
            if strikes and (way.extent == "all" or rank == 1):
                loss = way.spoil(loss) if way.target in ("loss", "logits", "everything") else loss
                chosen = {"gradient": ["text_embed"], "scale": ["log_scale"], "bias": ["bias"], "loss": []}
                for name in chosen.get(way.target, ARGUMENTS):
                    named[name] = way.spoil(named[name])
            of_ranks.append(RankOutcome(np.asarray(loss), named))
        observed.append(Observed(probe, split, of_ranks))
    report = judge_ranks(numpy_loss(way), "numpy", setting, {"log": observed}, CONVENTIONS[:1], "none", "global", [3])
    assert report.verdict in ("FAIL", "NOT JUDGED")


@pytest.mark.parametrize("result", [None, "loss", 1j, np.nan + 1j, object(), [], {}, np.array([]), np.array(["a"])])
@pytest.mark.parametrize("place", [0, 2, 5, *(pytest.param(k, marks=pytest.mark.nightly) for k in (1, 3, 4))])
def test_what_is_no_number_at_all_never_passes(result: object, place: int) -> None:
    """In place of the loss, of a gradient, of all."""

    def loss(*given: Any) -> Any:
        out = list(sr.sigmoid_loss(*given))
        if place == 5:
            return result
        out[place] = result
        return tuple(out)

    never_passes(lambda: sr.check_loss(loss, "numpy", "float64"))


@pytest.mark.parametrize("ids", [np.nan, np.inf, None, "a", 1j, [None], 1e300])
def test_tokens_that_are_no_numbers_never_pass(ids: Any) -> None:
    never_passes(lambda: sr.check_tokenize(lambda texts: [[ids] * 64 for _ in texts]))
    never_passes(lambda: sr.check_tokenize(lambda texts: ids))


def test_the_ways_cover_the_grammar() -> None:
    chosen = ways()
    assert len(set(chosen)) == 200
    for field in ("value", "target", "extent", "when"):
        found = [getattr(way, field) for way in chosen]
        counts = [found.count(value) for value in set(found)]
        assert max(counts) - min(counts) <= 4
