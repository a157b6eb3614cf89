"""The products of the towers, and the reference's text with one side of a product rounded to fewer bits."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product as product_of

from siglip_ref.mistakes import Edit


@dataclass(frozen=True)
class Product:
    """name; file and text of the statement that computes it; its two factors; its result, and what is added to it."""

    name: str
    file: str
    text: str
    first: str
    second: str
    result: str
    added: str = ""


def _linear(name: str, file: str, result: str, cache: str, x: str, kernel: str, bias: str) -> Product:
    text = f"{result}, {cache} = ops.linear.forward({x}, {kernel}, {bias})"
    return Product(name, file, text, x, kernel, result, bias)


def _dense(name: str, file: str, result: str, cache: str, x: str, part: str) -> Product:
    return _linear(name, file, result, cache, x, f'weights["{part}/kernel"]', f'weights["{part}/bias"]')


SOFTMAX, KERNEL = "softmax", "kernel"
_ATTENTION, _MLP = "ops/attention.py", "ops/mlp.py"
ATTENTION = (
    _dense("q", _ATTENTION, "query", "query_cache", "x_query", "q"),
    _dense("k", _ATTENTION, "key", "key_cache", "x_key", "k"),
    _dense("v", _ATTENTION, "value", "value_cache", "x_key", "v"),
    Product(
        "scores",
        _ATTENTION,
        "scores = (query / root) @ key.swapaxes(-1, -2)",
        "(query / root)",
        "key.swapaxes(-1, -2)",
        "scores",
    ),
    Product(SOFTMAX, _ATTENTION, "probability, _ = ops.softmax.forward(scores)", "scores", "", "probability"),
    Product("mix", _ATTENTION, "mixed = probability @ value  # (B, H, N, h)", "probability", "value", "mixed"),
    _dense("out", _ATTENTION, "out", "out_cache", "_join(mixed)", "out"),
    Product(KERNEL, _ATTENTION, "", "", "", ""),  # from queries, keys and values to the mix, as one
)
MLP = (
    _dense("mlp/in", _MLP, "hidden", "in_cache", "x", "in"),
    _dense("mlp/out", _MLP, "out", "out_cache", "active", "out"),
)
PATCH = (_linear("patch", "ops/embedding.py", "out", "cache", "flat", "kernel", "bias"),)
_ROWS_OF = "rows = x.reshape(-1, x.shape[-1])  # one product of two matrices, whatever stands before C\n    "
HEAD = (Product("head", "ops/linear.py", _ROWS_OF + "out = rows @ kernel + bias", "rows", "kernel", "out", "bias"),)

LINEAR, ALL = "every linear layer", "every product"
SIDES = ("inputs", "output", "inputs and output", "first factor", "second factor")


def edits_of(product: Product, side: str, form: str) -> Iterator[tuple[Edit, ...]]:
    """The reference's text with one side of a product rounded, in every way in which programs do it."""

    def edit(statement: str, *more: str) -> tuple[Edit, ...]:
        return (Edit(product.file, product.text, "\n    ".join((statement, *more))),)

    def short(x: str) -> str:
        return f'shortened({x}, "{form}")'

    if product.name == KERNEL:
        if side == "inputs and output":
            yield from _kernels(short)
        return
    first, second, text = product.first, product.second, product.text
    if product.name == SOFTMAX:  # no product; as a whole in a format, steps of it are rounded or fused
        if side == "output":
            yield edit(text, f"probability = {short('probability')}")
        elif side == "inputs and output":
            ways: tuple[Callable[[str], str], ...] = (short, str)
            for rounded in list(product_of(ways, repeat=4))[:-1]:  # the last one rounds the output alone
                shifted = rounded[0]("(scores - scores.max(-1, keepdims=True))")
                weight, total = rounded[1](f"np.exp({shifted})"), rounded[2]("weight.sum(-1, keepdims=True)")
                quotient = f"probability = {short(f'weight / {total}')}"
                yield edit(f"scores = {rounded[3]('scores')}", f"weight = {weight}", quotient)
        return
    both = _replaced(text, {first: short(first), second: short(second)})
    whole = f"{product.result} = {short(product.result)}"
    alone = f"{product.result} = {short(f'{product.result} - {product.added}')} + {product.added}"
    if side == "inputs":
        yield edit(both)
    elif side == "first factor":
        yield edit(_replaced(text, {first: short(first)}))
    elif side == "second factor":
        yield edit(_replaced(text, {second: short(second)}))
    elif side == "output":
        yield edit(text, whole)
        if product.added:  # of the product alone, before the bias is added
            yield edit(text, alone)
    else:
        yield edit(both, whole)
        if product.added:
            yield edit(both, alone)
            yield edit(_replaced(both, {product.added: short(product.added)}), whole)  # a layer cast as it is
    if product.name == "scores":  # of programs that divide the scores instead of the query
        late = {
            "inputs": (f"{short('query')} @ {short(second)} / root",),
            "output": (f"{short(f'query @ {second}')} / root",),
            "inputs and output": (short(f"{short('query')} @ {short(second)}") + " / root",),
            "first factor": (f"{short('query')} @ {second} / root",),
        }.get(side, ())
        yield from (edit(f"scores = {formula}") for formula in late)


def _kernels(short: Callable[[str], str]) -> Iterator[tuple[Edit, ...]]:
    """Attention computed as one in few bits: what goes in, what comes out, and the weights in between as programs do.
    The query is cast before it is divided or after; weights are rounded at no time, when normed, or before."""
    _, _, _, scores, softmax, mix, _, _ = ATTENTION
    weight = "weight = np.exp(scores - scores.max(-1, keepdims=True))"
    ways = (
        softmax.text,
        f"{softmax.text}\n    probability = {short('probability')}",
        f"{weight}\n    probability = {short('weight')} / weight.sum(-1, keepdims=True)",
        f"{weight}\n    probability = {short('weight')} / {short('weight')}.sum(-1, keepdims=True)",
    )
    mixed = f"mixed = {short(f'probability @ {short(mix.second)}')}"
    products = (f"{short('query')} @ {short(scores.second)} / root", f"{short(scores.first)} @ {short(scores.second)}")
    for product, way in product_of((*products, *(short(one) for one in products)), ways):
        parts = ((scores.text, f"scores = {product}"), (softmax.text, way), (mix.text, mixed))
        yield tuple(Edit(_ATTENTION, old, new) for old, new in parts)


def _replaced(text: str, changes: Mapping[str, str]) -> str:
    left, equals, right = text.partition(" = ")
    for old, new in changes.items():
        right = right.replace(old, new, 1)
    return left + equals + right
