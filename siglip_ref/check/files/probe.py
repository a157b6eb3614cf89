"""An engine's answer to an exported probe: the conversion of its weights, and each stage of its forward pass.

The weights went through the engine's own converter: a kernel that it transposed, or queries and keys that it exchanged,
show at the first stage that reads them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.params import shapes
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.engine.check import check
from siglip_ref.check.engine.subject import Answer, Compared, Subject, Worst
from siglip_ref.check.files.conversions import find_conversions
from siglip_ref.check.files.probe_export import ARITHMETICS, Exported, read_probe
from siglip_ref.check.model.adapters import Dtype, Run
from siglip_ref.check.model.diagnosis.diagnosis import declare, other_conventions
from siglip_ref.check.model.diagnosis.findings import findings_of, of_roundings
from siglip_ref.check.model.diagnosis.mistakes import find_mistakes
from siglip_ref.check.model.judge import Judge, make_judge, rows_of
from siglip_ref.check.model.probe import BITS, Probe
from siglip_ref.check.model.reference import reference
from siglip_ref.check.model.scales import Judged
from siglip_ref.check.model.sight import model_sight
from siglip_ref.errors import UsageError
from siglip_ref.model.loss import sigmoid_loss
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.report.compare import Row, not_checked
from siglip_ref.report.data import Report, Sight
from siglip_ref.report.verdict import Judgement, Unjudged, judgement
from siglip_ref.vectors.files import read_tensors

EMBEDS = ("image/embed", "text/embed")
_FORWARD = "that only gradients show (this was a forward pass)"


@np.errstate(all="ignore")  # what overflows in the reference is a result
def check_probe(
    answer: str | Path, probe: str | Path, arithmetic: str | None = None, *, quantised: bool = False
) -> Report:
    """Is what an engine without gradients computed on a probe right, stage by stage?

    Parameters
    ----------
    answer : .safetensors or .npz with activations under the names of the probe's probe.json; at least one embedding.
        With quantised weights also params/NAME, the numbers that the engine computes with: it is judged by those
    probe : the folder that `export_probe` wrote
    arithmetic : what the engine computed in; None: what the probe was exported for
    quantised : its weights are quantised and not in the answer: then there is no verdict, but a cosine of each stage

    Returns
    -------
    Report; its rows are the activations that the answer holds, in the order of the network

    Raises
    ------
    UsageError
    """
    exported, path = read_probe(probe), Path(answer)
    tensors, _ = read_tensors(path)
    dtype = _arithmetic(exported, arithmetic)
    cfg, chosen = exported.cfg, exported.cfg.conventions
    own = subtree(tensors, "params")
    shown = {name: value for name, value in tensors.items() if not name.startswith("params/")}
    given = _with_weights(exported.probe, own)
    exact = reference(given, cfg, chosen, np.float64)
    _require(path, shown, own, exact.activations, cfg)
    run = Run(_loss(shown, given, exact.loss), shown, {})
    judge = _forward(make_judge(exact, given, cfg, chosen, dtype, dtype))
    missing = [name for name in exact.activations if name not in shown]
    return check(ProbeSubject(path, Path(probe), cfg, given, run, judge, missing, len(own), quantised))


@dataclass(frozen=True)
class ProbeSubject(Subject[Compared]):
    """An answer. given : the probe with the engine's own weights, of which there are `own`; missing : activations that
    it does not hold."""

    path: Path
    probe: Path
    cfg: Config
    given: Probe
    run: Run
    standard: Judge
    missing: Sequence[str]
    own: int
    quantised: bool

    @property
    def _how(self) -> tuple[Probe, Config, Conventions]:
        return self.given, self.cfg, self.cfg.conventions

    def compare(self) -> Compared:
        """Every activation that the answer holds."""
        rows = [row for row in rows_of(self.run, self.standard) if row.name in self.run.activations]
        return Compared([_cosine(row) for row in rows] if self.quantised else rows)

    def judge(self, compared: Compared) -> Judgement:
        """A forward pass has nothing that must be there; of unknown weights nothing says how far off is right."""
        if self.quantised:
            return Judgement("NOT JUDGED", _UNKNOWN_WEIGHTS)
        return judgement(compared.details, needed=lambda row: False)

    def others(self, compared: Compared) -> Iterator[Answer[Compared]]:
        """Another convention under which every stage is right."""
        judge, (given, cfg, chosen) = self.standard, self._how
        for other in other_conventions(self.run, judge, *self._how) if compared.wrong else ():
            if not any(other.fits.values()):
                continue
            under = replace(chosen, **other.changes)
            exact = reference(given, cfg, under, np.float64)
            again = rows_of(self.run, _forward(make_judge(exact, given, cfg, under, judge.dtype, judge.coarsest)))
            if all(row.verdict != "FAIL" for row in again if row.name in self.run.activations):
                yield Answer([declare(under, other.changes, "every stage is right then")], "OTHER CONVENTION")

    def explain(self, compared: Compared) -> Answer[Compared]:
        """The mistakes, what a converter did, else where it begins."""
        found = find_mistakes(self.run, self.standard, *self._how)
        converted, left = find_conversions(found.unexplained, self.run, self.standard, *self._how)
        findings = of_roundings(list(found.rounded.values()), self.run, compared.details) + converted
        if found.made or left or not findings:
            findings += findings_of(replace(found, unexplained=tuple(left)), compared.details, self.run)
        return Answer(findings)

    def title(self, compared: Compared) -> str:
        """Names both files, the model and its numbers."""
        return f"{self.path.name} against {self.probe.name}; {self.cfg.name}; {self.standard.dtype}; forward only"

    def rows(self, compared: Compared) -> list[Row]:
        """Every activation is compared once."""
        return compared.details

    def count(self, compared: Compared) -> Sight:
        """What the stages that were judged would have shown; what only gradients show is of another check."""
        shown = [row.name for row in compared.details if row.right or row.verdict == "FAIL"]
        judged = Judged([self.run], [], [self.standard], compared.details)
        coarsest = self.standard.coarsest
        here = model_sight(shown, judged, *self._how, coarsest, False)
        grads = [name for name in shapes(self.cfg) if name.split("/")[0] in {one.split("/")[0] for one in shown}]
        with_gradients = model_sight([*shown, *grads], judged, *self._how, coarsest, False)
        backward = [id for id in here.blind if id in with_gradients.seen]
        blind = tuple(id for id in here.blind if id not in backward)
        return Sight(here.seen, blind, {**here.elsewhere, **dict.fromkeys(backward, _FORWARD)}, here.dtype)

    def tell(self, compared: Compared, report: Report) -> None:
        """Conventions; whose weights it was judged by, and what is missing."""
        listed = ", ".join(self.missing[:4])
        report.conventions = {name: str(value) for name, value in vars(self.cfg.conventions).items()}
        if self.missing:
            report.not_checked = [f"{len(self.missing)} activations that are not in the answer: {listed}"]
        if self.own:
            report.notes = [f"judged by {self.own} tensors of weights of the answer's own"]
        report.blind = []

    def worst(self, compared: Compared, report: Report) -> Worst | None:
        """The whole answer."""
        again = f"print(sr.check_dump({self.path.name!r}, probe={str(self.probe)!r}))"
        return Worst(report.closest or compared.details[0], self.run.activations, again) if compared.details else None


_UNKNOWN_WEIGHTS = Unjudged(
    "judged nowhere",
    ("every stage",),
    "the weights that the engine computes with are not known, so nothing says how far off is right",
    "add them to the answer as params/NAME, dequantised: then each stage is judged",
)


def _arithmetic(exported: Exported, asked: str | None) -> Dtype:
    """What was computed in: weights and inputs must be exact in it, or their rounding would count as an error."""
    dtype = asked or exported.arithmetic
    if dtype not in ARITHMETICS or BITS[exported.arithmetic] > BITS[dtype]:
        raise UsageError(
            expected=f"one of {', '.join(ARITHMETICS)} in which the probe's weights are exact",
            got=f"{dtype}, for a probe exported for {exported.arithmetic}",
            cause=f"{dtype} cannot hold the weights of this probe" if dtype in ARITHMETICS else "",
            repair=f"siglip-ref probe export ... --arithmetic {dtype if dtype in ARITHMETICS else 'float16'}",
        )
    return cast(Dtype, dtype)


def _with_weights(probe: Probe, own: Mapping[str, Array]) -> Probe:
    """With the weights that the engine says it computes with."""
    shapes_of = {name: np.shape(value) for name, value in probe.params.items()}
    known = {name: np.asarray(value) for name, value in own.items() if np.shape(value) == shapes_of.get(name)}
    return replace(probe, params=probe.params | known)


def _require(
    path: Path, shown: Mapping[str, Array], own: Mapping[str, Array], exact: Mapping[str, Array], cfg: Config
) -> None:
    wanted = prefixed("params", dict.fromkeys(shapes(cfg)))
    unknown = sorted((shown.keys() - exact.keys()) | (prefixed("params", own).keys() - wanted.keys()))
    unfit = [name for name, shape in shapes(cfg).items() if name in own and np.shape(own[name]) != shape]
    named = [*unknown, *(f"params/{name}" for name in unfit)]
    if named or not any(name in shown for name in EMBEDS):
        raise UsageError(
            expected=f"activations by the names of probe.json, {' or '.join(EMBEDS)} among them",
            got=f"{path.name} with {', '.join(named[:4] or sorted(shown)[:4])}"
            + (f" of shape {np.shape(own[unfit[0]])}" if unfit and not unknown else ""),
            cause="" if named else "no embedding is among them, so the towers' ends were not computed",
            repair="rename the tensors as probe.json lists them",
        )


def _loss(shown: Mapping[str, Array], probe: Probe, exact: Array) -> Array:
    """Of the embeddings that the engine gave: a forward pass has no loss of its own that could be wrong."""
    embeds = [shown.get(name) for name in EMBEDS]
    if embeds[0] is None or embeds[1] is None or np.shape(embeds[0]) != np.shape(embeds[1]):
        return exact
    x, y = (np.asarray(embed, np.float64) for embed in embeds)
    return sigmoid_loss(x, y, probe.params["log_scale"], probe.params["bias"]).loss


def _forward(judge: Judge) -> Judge:
    """The same judge, who asks for no gradients."""
    return replace(judge, exact=replace(judge.exact, grads={}), of_grad={})


def _cosine(row: Row) -> Row:
    return not_checked(row.name, row.kind, f"cosine {row.cosine:.6f}, error {row.error:.2g} of the largest number")
