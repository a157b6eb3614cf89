"""The picture of the model: every stage that a report prints, in its order, with the parameters of each.

python tools/model_picture.py       writes docs/_static/model.svg from the report of `siglip-ref check model hf:tiny`
"""

from pathlib import Path

TARGET = Path(__file__).parent.parent / "docs" / "_static" / "model.svg"
WIDTH, STEP, BOX = 520, 46, 190
SAID = {
    "image/stem": "patches, and positions added",
    "text/stem": "tokens looked up, and positions added",
    "norm": "the last layer norm",
    "image/pool": "attention of one learned probe to all positions",
    "text/pool": "the last position",
    "head": "to the common width",
    "embed": "divided by its length",
}
HUES = {"image": "#0072b2", "text": "#d55e00"}


def names() -> list[str]:
    """The rows of the report: stages, then gradients with a leading `d `."""
    from readme_sample import output

    return [line.split("  ")[0] for line in output().split("\n\n", 2)[1].splitlines()[1:]]


def layers_of(stage: str, stages: list[str], parameters: list[str]) -> list[str]:
    """The layers whose parameters a stage has."""
    tower, _, rest = stage.partition("/")
    mine = [name.removeprefix(f"{tower}/") for name in parameters if name.startswith(f"{tower}/")]
    layers = list(dict.fromkeys(name.rpartition("/")[0] or name for name in mine))
    if rest.endswith(("+attn", "+mlp")):
        block, part = rest.split("/+")
        inside = (f"{block}/norm{1 if part == 'attn' else 2}", f"{block}/{part}/")
        return [layer.removeprefix(f"{block}/") for layer in layers if layer.startswith(inside)]
    if rest == "stem":
        taken = ("block", *(name.partition("/")[2] for name in stages if name.startswith(tower) and "stem" not in name))
        return [layer for layer in layers if not layer.startswith(taken)]
    return [layer.removeprefix(f"{rest}/") for layer in layers if layer == rest or layer.startswith(f"{rest}/")]


def grouped(layers: list[str]) -> str:
    """attn/q, attn/k, attn/v -> attn/(q k v)."""
    out: dict[str, list[str]] = {}
    for layer in layers:
        room, _, name = layer.rpartition("/")
        out.setdefault(room, []).append(name)
    parts = [f"{room}/({' '.join(inside)})" if room else ", ".join(inside) for room, inside in out.items()]
    return ", ".join(parts)


def row(stage: str, layers: list[str], x: float, y: float, hue: str) -> list[str]:
    """A stage's box, and what belongs to it."""
    last = stage.rpartition("/")[2]
    said = SAID.get(stage, SAID.get(last, ""))
    lines = [said, f"parameters: {grouped([layer for layer in layers if layer != last] or [last])}" if layers else ""]
    out = [
        f'<rect x="{x}" y="{y}" width="{BOX}" height="28" rx="5" fill="#fff" stroke="{hue}" stroke-width="2"/>',
        f'<text x="{x + BOX / 2}" y="{y + 19}" text-anchor="middle" class="name">{stage}</text>',
    ]
    shown = [line for line in lines if line]
    for k, line in enumerate(shown):
        offset = 19 if len(shown) == 1 else 11 + 15 * k
        out.append(f'<text x="{x + BOX + 12}" y="{y + offset}">{line}</text>')
    return out


def picture(rows: list[str]) -> str:
    """Both towers, from top to bottom, and where they meet."""
    stages = [name for name in rows if not name.startswith("d ")]
    parameters = [name.removeprefix("d ") for name in rows if name.startswith("d ")]
    towers = {tower: [name for name in stages if name.startswith(f"{tower}/")] for tower in HUES}
    longest = max(map(len, towers.values()))
    out, foot = [], 20 + STEP * longest
    for column, (tower, hue) in enumerate(HUES.items()):
        x = 14 + column * WIDTH
        for k, stage in enumerate(towers[tower]):
            y = 16 + STEP * k
            out += row(stage, layers_of(stage, stages, parameters), x, y, hue)
            end = y + STEP if k + 1 < len(towers[tower]) else foot + 22
            out.append(f'<path d="M{x + BOX / 2} {y + 28}V{end}" stroke="{hue}" stroke-width="2" fill="none"/>')
    middle = WIDTH + 14 + BOX / 2
    out.append(f'<path d="M{14 + BOX / 2} {foot + 22}H{middle}" stroke="#1d1c1a" stroke-width="2" fill="none"/>')
    x = 14 + (WIDTH - BOX) / 2 + BOX / 2
    for k, (stage, said) in enumerate(
        (("logits", "exp(log_scale) · image · text + bias"), ("loss", "sum over all pairs / images"))
    ):
        y = foot + 36 + STEP * k
        out.append(
            f'<path d="M{x + BOX / 2} {y - (14 if k == 0 else STEP - 28)}V{y}" stroke="#1d1c1a" stroke-width="2"/>'
        )
        out += [
            f'<rect x="{x}" y="{y}" width="{BOX}" height="28" rx="5" fill="#fff" stroke="#1d1c1a" stroke-width="2"/>',
            f'<text x="{x + BOX / 2}" y="{y + 19}" text-anchor="middle" class="name">{stage}</text>',
            f'<text x="{x + BOX + 12}" y="{y + 19}">{said}</text>',
        ]
    height = foot + 36 + 2 * STEP
    style = (
        "text { font: 12.5px system-ui, sans-serif; fill: #1d1c1a } .name { font: 600 13px ui-monospace, monospace }"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH + 20} {height}" role="img">',
            "<title>The model: each stage by the name that reports print, with its parameters</title>",
            f"<style>{style}</style>",
            f'<rect width="{2 * WIDTH + 20}" height="{height}" fill="#fbfaf8"/>',
            *out,
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(picture(names()), encoding="utf-8")
