"""The worst probe of a loss: its arrays, and the lines that make the check again."""

from typing import TYPE_CHECKING

from siglip_ref.check.call.frameworks import Setting, describe
from siglip_ref.check.engine.expected.expected import Convention, tensors_of
from siglip_ref.check.engine.subject import Worst
from siglip_ref.check.loss.messages import declared_as
from siglip_ref.report.data import Report

if TYPE_CHECKING:
    from siglip_ref.check.loss.subject import ComparedLoss, LossSubject


def worst_of(subject: "LossSubject", compared: "ComparedLoss", report: Report) -> Worst | None:
    """Of the tensor that deviates most; of the nearest to it, where nothing does."""
    called, convention = compared.called, compared.convention
    rows = [row for row in report.rows if row.probe in called]
    if not rows:
        return None
    worst = max(rows, key=lambda row: (row.verdict == "FAIL", row.excess if row.excess == row.excess else 0))
    one = called[worst.probe]
    linear = convention.scale == "linear"
    arrays = {
        "input/image_embed": one.probe.image_embed,
        "input/text_embed": one.probe.text_embed,
        f"input/{'scale' if linear else 'log_scale'}": one.probe.scale if linear else one.probe.log_scale,
        "input/bias": one.probe.bias,
    }
    for name, (got, exact) in tensors_of(one.outcome, one.right).items():
        arrays |= {} if got is None else {f"got/{name}": got, f"expected/{name}": exact}
    again = f'print(sr.check_loss(fn, "{subject.framework.name}", {_arguments(compared.setting, convention)}))'
    return Worst(worst, arrays, f"{_load(subject.fn)}\n{again}")


def _load(fn: object) -> str:
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", "")
    if module and name.isidentifier() and module != "__main__":
        return f"from {module} import {name} as fn"
    return f"fn = ...  # {describe(fn)}"


def _arguments(setting: Setting, convention: Convention) -> str:
    precision = ', precision="autocast"' if setting.autocast else ""
    return (
        f'dtype="{setting.dtype}", device="{setting.device}", scale="{convention.scale}", '
        f'embeddings="{convention.embeddings}"{precision}{declared_as(convention.objective)}'
    )
