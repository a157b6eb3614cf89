"""Judge tensors that any program wrote for a golden vector: NumPy alone, whatever language or framework made them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from siglip_ref.check.call.frameworks import dtype_name
from siglip_ref.check.engine.check import check
from siglip_ref.check.engine.coverage import sorted_out
from siglip_ref.check.engine.explain import explain, share_explained
from siglip_ref.check.engine.seen import Seen
from siglip_ref.check.engine.subject import Answer, Compared, Subject, Worst
from siglip_ref.check.files.probe import check_probe
from siglip_ref.errors import UsageError
from siglip_ref.mistakes import CATALOGUE, Edit, Mistake, reference
from siglip_ref.noise.measure import TIMES
from siglip_ref.ops.elementary import Array
from siglip_ref.report.compare import Kind, Row, compare, not_checked, out_of_range
from siglip_ref.report.data import Finding, Report, Sight
from siglip_ref.report.verdict import Judgement, judgement
from siglip_ref.vectors.files import read_tensors
from siglip_ref.vectors.power import FORMATS, SEEN, errors, measured, run
from siglip_ref.vectors.store import Vector, packaged

COMBINED = 6  # mistakes that are tried together


def check_dump(
    path: str | Path,
    vector: str | None = None,
    dtype: object = None,
    partial: bool = False,
    *,
    probe: str | Path | None = None,
    forward_only: bool = False,
    quantised: bool = False,
) -> Report:
    """Compare a file of tensors with a golden vector, or with an exported probe.

    Parameters
    ----------
    path : .safetensors or .npz, tensors under the names of the vector's expected values
    vector : id of the vector; None: the file's metadata "vector" (safetensors only)
    dtype : what it was computed in; None: the narrowest float type in the file
    partial : judge what is there; else a missing tensor is a failure
    probe : instead of a vector, a folder that `siglip-ref probe export` wrote
    forward_only : of a probe: the engine has no gradients; so far the only kind of answer to a probe
    quantised : see `siglip_ref.check.files.probe.check_probe`

    Returns
    -------
    Report, with a finding for each mistake of the catalogue that explains what deviates

    Raises
    ------
    UsageError (VectorError for an unreadable file)
    """
    path, form = Path(path), None if dtype is None else dtype_name(dtype, "dtype")
    if probe is not None:
        _require_forward(probe, vector, forward_only)
        return check_probe(path, probe, form, quantised=quantised)
    tensors, metadata = read_tensors(path)
    name = vector or metadata.get("vector")
    if name is None:
        raise UsageError(
            expected="the id of the golden vector that this is the answer to",
            got=f"{path.name}, which does not say",
            cause=_no_metadata(path),
            repair=f"check_dump({path.name!r}, vector=...); siglip-ref vectors list shows all",
        )
    return judge(
        packaged().find(name),
        tensors,
        form or metadata.get("dtype") or _dtype_of(tensors),
        f"{path.name} against {name}",
        partial,
    )


def _require_forward(probe: str | Path, vector: str | None, forward_only: bool) -> None:
    if vector is not None or not forward_only:
        raise UsageError(
            expected="a vector, or a probe and forward_only",
            got=f"probe={str(probe)!r}" + (f" and vector={vector!r}" if vector else " alone"),
            cause="a file answers one of them" if vector else "a model with gradients is judged whole by check_model",
            repair=f"siglip-ref check dump ANSWER --probe {probe} --forward-only",
        )


def judge(vector: Vector, got: Mapping[str, Array], dtype: str, title: str, partial: bool = False) -> Report:
    """Hold tensors against a vector's, within the noise that correct programs show in `dtype`."""
    _require(vector, got, dtype)
    return check(DumpSubject(vector, got, dtype, title, partial))


@dataclass
class ComparedDump(Compared):
    """tensors : for diagnosis; missing : names of those that are not in the file."""

    tensors: list[Seen]
    missing: list[str]


@dataclass(frozen=True)
class DumpSubject(Subject[ComparedDump]):
    """Tensors that somebody wrote for a vector."""

    vector: Vector
    got: Mapping[str, Array]
    dtype: str
    of: str
    partial: bool

    def compare(self) -> ComparedDump:
        """What is in the file; the rest is missing."""
        vector, got, found = self.vector, self.got, ComparedDump([], [], [])
        noise = measured().noise_of(vector, self.dtype)
        for name in in_order(vector):
            expected, (kind, shown), level = vector.expected[name], kind_of(name), noise[name]
            if name not in got:
                found.missing.append(shown)
                found.details += [] if self.partial else [not_checked(shown, kind, "not in the file")]
            elif level is None:
                reason = f"overflows in {self.dtype} even with correct rounding"
                found.details.append(out_of_range(shown, kind, reason))
            else:
                limit, zero = TIMES * level, vector.zero.get(name)
                found.details.append(
                    compare(shown, got[name], expected, limit, kind=kind, zero_scale=zero, noise=level)
                )
                if got[name].shape == expected.shape:
                    allowed = np.asarray(limit * vector.unit(name))
                    found.tensors.append(Seen(vector.id, name, got[name], expected, allowed))
        return found

    def judge(self, compared: ComparedDump) -> Judgement:
        """A tensor that is missing fails, unless only a part was to be judged."""
        return Judgement("FAIL") if compared.missing and not self.partial else judgement(compared.details)

    def explain(self, compared: ComparedDump) -> Answer[ComparedDump]:
        """Mistakes that this vector shows."""
        return Answer(_findings(self.vector, compared.tensors, self.dtype) if compared.wrong else [])

    def title(self, compared: ComparedDump) -> str:
        """Names the file, the vector and the dtype."""
        return f"{self.of}, {self.dtype}"

    def rows(self, compared: ComparedDump) -> list[Row]:
        """Every tensor is compared once."""
        return compared.details

    def count(self, compared: ComparedDump) -> Sight:
        """Of the mistakes that vectors of this kind show in float64: those that this one shows in these tensors."""
        vector, dtype = self.vector, self.dtype
        judged = {row.name for row in compared.details if row.right or row.verdict == "FAIL"}
        whole = all(kind_of(name)[1] in judged for name, level in measured().noise_of(vector, dtype).items() if level)
        alike = {one.id for one in packaged().vectors.values() if one.task == vector.task}
        seen = {}
        for name in measured().power:
            if name in CATALOGUE and measured().best(name, "float64", alike)[0] >= SEEN:
                seen[name] = measured().best(name, dtype, {vector.id})[0] >= SEEN
                if seen[name] and not whole:  # the table is of all tensors together
                    seen[name] = _power(vector, CATALOGUE[name], dtype, judged) >= SEEN
        other = {name: f"that no vector of {vector.task} shows" for name, rows in measured().power.items() if rows}
        return sorted_out(seen, dtype, other)

    def tell(self, compared: ComparedDump, report: Report) -> None:
        """The vector's conventions, and what is missing."""
        missing = compared.missing
        report.conventions = {name: str(value) for name, value in self.vector.conventions.items()}
        report.not_checked = [f"{len(missing)} tensors that are not in the file"] if missing else []
        report.notes = [f"{len(missing)} tensors are not in the file: {', '.join(missing[:4])}"] if missing else []

    def worst(self, compared: ComparedDump, report: Report) -> Worst | None:
        """The whole file."""
        again = f'print(sr.check_dump("case.npz", vector={self.vector.id!r}, dtype={self.dtype!r}))'
        return Worst(report.closest or compared.details[0], self.got, again) if compared.details else None


def _power(vector: Vector, mistake: Mistake, dtype: str, judged: Collection[str]) -> float:
    """The largest error that a mistake makes in these tensors, in units of their noise."""
    found = errors(vector, _made(vector, tuple(mistake.edits), dtype))
    noise = measured().noise_of(vector, dtype)
    return max((found[n] / level for n, level in noise.items() if level and kind_of(n)[1] in judged), default=0.0)


def in_order(vector: Vector) -> list[str]:
    """The expected tensors as the network has them: values on the way forward, what comes out last; then gradients, so
    that the way back goes through them from the last to the first."""
    values = [name for name in vector.expected if kind_of(name)[0] != "gradient"]
    values.sort(key=lambda name: name == "out")  # a tower's vectors have it first
    inputs = [name.removeprefix("params/") for name in vector.inputs]
    places = {name: place for place, name in enumerate([*inputs, *(f"@{name}" for name in values)])}
    gradients = [name for name in vector.expected if kind_of(name)[0] == "gradient"]
    gradients.sort(key=lambda name: places.get(kind_of(name)[1], len(places)))
    return values + gradients


def kind_of(name: str) -> tuple[Kind, str]:
    """What an expected tensor is, and its name in a report.

    >>> kind_of("rank0/d_text_embed"), kind_of("d/text/token"), kind_of("image/stem"), kind_of("loss")
    (('gradient', 'rank0/text_embed'), ('gradient', 'text/token'), ('activation', 'image/stem'), ('value', 'loss'))
    """
    head, _, rest = name.rpartition("/")
    if name.startswith("@"):
        return "gradient", name
    if name.startswith("d/"):
        return "gradient", name[2:]
    if rest.startswith("d_"):
        return "gradient", f"{head}/{rest[2:]}".lstrip("/")
    if name.startswith("d_w/"):
        return "gradient", name[2:]
    return ("activation" if name.startswith(("image/", "text/")) or name == "logits" else "value"), name


def _findings(vector: Vector, seen: Sequence[Seen], dtype: str) -> list[Finding]:
    """What explains the deviation, alone or two or three together; combinations only of what explains most alone."""

    def predict(mistakes: Sequence[Mistake]) -> dict[tuple[str, str], Array]:
        return _predicted(vector, mistakes, dtype)

    # mistakes that this vector sees, as measured
    known = [CATALOGUE[name] for name, rows in measured().power.items() if vector.id in rows and name in CATALOGUE]
    alone = {mistake.id: share_explained(seen, predict([mistake])) for mistake in known}
    best = sorted(known, key=lambda mistake: -alone[mistake.id])[:COMBINED]
    seen = [one for one in seen if not _is_gradient(one.name)] + [one for one in seen if _is_gradient(one.name)][::-1]
    found = explain(seen, [mistake for mistake in known if mistake in best], predict, is_gradient=_is_gradient)
    if any(_is_gradient(one.name) for one in seen):
        return found
    return _told_once(found, lambda id: predict([CATALOGUE[id]]))


def _told_once(found: Sequence[Finding], predict: Callable[[str], Mapping[tuple[str, str], Array]]) -> list[Finding]:
    """Of a forward pass alone: mistakes with the same values are one finding, as only the way back tells them apart."""
    told: list[Finding] = []
    for one in found:
        same = next((i for i, other in enumerate(told) if _same_values(one, other, predict)), None)
        if same is None:
            told.append(one)
        else:
            evidence = f"{told[same].evidence}; {one.id} has the same values: no gradient in this file tells them apart"
            told[same] = replace(told[same], evidence=evidence)
    return told


def _same_values(one: Finding, other: Finding, predict: Callable[[str], Mapping[tuple[str, str], Array]]) -> bool:
    if not {one.id, other.id} <= CATALOGUE.keys():
        return False
    mine, theirs = predict(one.id), predict(other.id)
    return all(_is_gradient(key[1]) or np.array_equal(x, theirs[key], equal_nan=True) for key, x in mine.items())


def _is_gradient(name: str) -> bool:
    return kind_of(name)[0] == "gradient"


def _predicted(vector: Vector, mistakes: Sequence[Mistake], dtype: str) -> dict[tuple[str, str], Array]:
    edits = tuple(edit for mistake in mistakes for edit in mistake.edits)
    reference(edits)  # ValueError: two of them change the same line
    values = _made(vector, edits, dtype)
    absent = {name: np.full(expected.shape, np.nan) for name, expected in vector.expected.items()}  # a block never met
    return {(vector.id, name): np.asarray(value) for name, value in {**absent, **values}.items()}


@lru_cache(maxsize=128)  # a report asks for each mistake twice, and the next report on the same vector again
def _made(vector: Vector, edits: tuple[Edit, ...], dtype: str) -> Mapping[str, Array]:
    """What a vector's task gives with mistakes; nothing where matrices do not fit: it cannot have been these."""
    try:
        return run(vector, reference(edits), "float64" if dtype == "float64" else "float32")
    except (ValueError, LookupError):
        return {}


def _require(vector: Vector, got: Mapping[str, Array], dtype: str) -> None:
    if dtype not in FORMATS or dtype not in vector.exact_in:
        raise UsageError(
            expected=f"one of {', '.join(vector.exact_in)} for {vector.id}",
            got=dtype,
            cause="inputs must be exact in the format that is judged",
            repair=f"dtype={vector.exact_in[-1]!r}, or another vector",
        )
    unknown = sorted(got.keys() - vector.expected.keys())
    if unknown or not got:
        raise UsageError(
            expected=f"tensors of {vector.id}: " + ", ".join(list(vector.expected)[:8]),
            got=", ".join(unknown[:4]) or "no tensor at all",
            cause=_whose(unknown),
            repair=f"siglip-ref vectors export FOLDER --only {vector.id} writes the names",
        )


def _no_metadata(path: Path) -> str:
    return "an .npz has no metadata" if path.suffix == ".npz" else 'its metadata holds no "vector"'


def _whose(names: Sequence[str]) -> str:
    """The vector that has all these tensors, if there is one."""
    owner = next((v.id for v in packaged().vectors.values() if names and set(names) <= v.expected.keys()), "")
    return f"{owner} has tensors of these names" if owner else ""


def _dtype_of(tensors: Mapping[str, Array]) -> str:
    """The narrowest float type among the tensors."""
    names = {value.dtype.name for value in tensors.values()} & set(FORMATS)
    return min(names, key=lambda name: np.dtype(name).itemsize, default="float64")
