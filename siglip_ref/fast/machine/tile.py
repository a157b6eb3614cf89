"""The machine's part of a matrix product: a tile of sums in registers, and how a strip of weights is put in order.

The loop over k is written in LLVM's language, because Numba has no vectors; what LLVM makes of it fits the processor.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import config, extending
from numba.core import cgutils, types

_settings: Any = config  # its attributes are made at run time
intrinsic: Any = extending.intrinsic  # what it makes takes one argument less than what it is given


def _registers() -> tuple[int, int]:
    """Bytes of a vector, and rows of a tile whose sums, strip and broadcast number fit the registers."""
    named = _settings.CPU_FEATURES
    if named is None:
        known = _settings.CPU_NAME in (None, binding.get_host_cpu_name())
        named = binding.get_host_cpu_features().flatten() if known else ""
    if "+avx512f" in named:
        return 64, 8
    machine = binding.get_default_triple().split("-")[0]
    return (32, 4) if machine in ("x86_64", "amd64") else (16, 8)


VECTOR, ROWS = _registers()
STRIP = 3  # vectors of a strip's width
NARROW = 2  # vectors of a strip in a head, whose 64 features are four of them, or eight
LINE = 64  # bytes that the caches bring at once
STEPS = 4  # of k in one turn of the loop: a fifth quicker than one, where a strip comes out of the second cache
DEPTH = 384  # numbers of a strip from top to bottom: with the rows that meet it, it stays in the second cache

_INT, _INDEX, _BYTE = ir.IntType(64), ir.IntType(32), ir.IntType(8)


def _vector(number: Any) -> ir.VectorType:
    return ir.VectorType(number, VECTOR // (4 if isinstance(number, ir.FloatType) else 8))


def _at(builder: Any, address: Any, offset: Any, kind: Any) -> Any:
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def _load(builder: Any, address: Any, offset: Any, kind: Any) -> Any:
    found = builder.load(_at(builder, address, offset, kind))
    found.align = 4  # any number's; strips and rows begin anywhere
    return found


def _store(builder: Any, value: Any, address: Any, offset: Any) -> None:
    builder.store(value, _at(builder, address, offset, value.type)).align = 4


def _mask(numbers: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(_INDEX, len(numbers)), numbers)


def _written(emit: Callable[..., None], integers: int) -> Any:
    """A function of kernels whose code `emit` writes: of so many integers, and a number that says the precision."""

    def typed(typing_context: Any, *given: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            emit(builder, arguments[-1].type, *arguments[:-1])
            return context.get_dummy_value()

        return types.void(*[types.intp] * integers, given[-1]), generate

    return typed


def _fetch(builder: Any, address: Any, write: int, cache: int) -> None:
    """A line of the caches, on its way into the first or the second."""
    name, kinds = "llvm.prefetch.p0", [_BYTE.as_pointer(), _INDEX, _INDEX, _INDEX]
    fetch = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(ir.VoidType(), kinds), name)
    builder.call(fetch, [builder.inttoptr(address, kinds[0]), _INDEX(write), _INDEX(4 - cache), _INDEX(1)])


def _emit_tile(
    builder: Any, number: Any, x: Any, strip: Any, depth: Any, out: Any, out_step: Any, ahead: Any
) -> None:  # fmt: skip
    """out (ROWS x 3 vectors) += x (ROWS, depth), its rows DEPTH apart, @ strip (depth, 3 vectors).

    Meanwhile `depth` / STEPS lines of the caches are brought from `ahead`.
    """
    vector = _vector(number)
    step = _INT(DEPTH * VECTOR // vector.count)
    places = [(row, part) for row in range(ROWS) for part in range(STRIP)]
    at = [builder.add(builder.mul(out_step, _INT(row)), _INT(part * VECTOR)) for row, part in places]
    for place in at:  # on its way while the sums are made
        _fetch(builder, builder.add(out, place), write=1, cache=1)
    for place, value in zip(at, _emit_product(builder, number, x, step, strip, depth, STRIP, ahead), strict=True):
        _store(builder, builder.fadd(_load(builder, out, place, vector), value), out, place)


def _emit_narrow(
    builder: Any, number: Any, x: Any, x_step: Any, strip: Any, depth: Any, out: Any, out_step: Any
) -> None:  # fmt: skip
    """out (ROWS x NARROW vectors) = x (ROWS, depth), its rows x_step bytes apart, @ strip (depth, NARROW vectors)."""
    sums = iter(_emit_product(builder, number, x, x_step, strip, depth, NARROW, None))
    for row in range(ROWS):
        for part in range(NARROW):
            place = builder.add(builder.mul(out_step, _INT(row)), _INT(part * VECTOR))
            _store(builder, next(sums), out, place)


def _emit_product(
    builder: Any, number: Any, x: Any, x_step: Any, strip: Any, depth: Any, wide: int, ahead: Any
) -> list[Any]:  # fmt: skip
    """The sums of a tile of ROWS x `wide` vectors, row by row."""
    whole, zero = builder.and_(depth, _INT(-STEPS)), ir.Constant(_vector(number), None)
    rows = [builder.add(x, builder.mul(x_step, _INT(row))) for row in range(ROWS)]
    sums = [zero] * (ROWS * wide)
    for first, last, steps in ((_INT(0), whole, STEPS), (whole, depth, 1)):
        sums = _emit_sums(builder, number, rows, strip, first, last, steps, sums, ahead)
    return sums


def _emit_sums(
    builder: Any, number: Any, rows: list[Any], strip: Any, first: Any, last: Any, steps: int, sums: list[Any],
    ahead: Any,
) -> list[Any]:  # fmt: skip
    """A tile's sums with those of k from `first` to `last` added, so many steps in one turn of the loop."""
    vector, wide = _vector(number), len(sums) // ROWS
    bytes_ = VECTOR // vector.count
    name = f"llvm.fma.v{vector.count}f{8 * bytes_}"
    fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
    above, head, inside, below = builder.block, *[builder.append_basic_block() for _ in range(3)]
    builder.branch(head)
    builder.position_at_end(head)
    k, phis = builder.phi(_INT), [builder.phi(vector) for _ in sums]
    builder.cbranch(builder.icmp_signed("<", k, last), inside, below)
    builder.position_at_end(inside)
    along, right = builder.mul(k, _INT(bytes_)), builder.add(strip, builder.mul(k, _INT(wide * VECTOR)))
    if ahead is not None:
        _fetch(builder, builder.add(ahead, builder.mul(k, _INT(LINE // STEPS))), write=0, cache=2)
    nothing, total = ir.Constant(vector, ir.Undefined), phis
    for step in range(steps):
        parts = [_load(builder, right, _INT((step * wide + part) * VECTOR), vector) for part in range(wide)]
        for row in range(ROWS):
            one = _load(builder, builder.add(rows[row], along), _INT(step * bytes_), number)
            spread = builder.shuffle_vector(
                builder.insert_element(nothing, one, _INDEX(0)), nothing, _mask([0] * vector.count)
            )
            at = row * wide
            added = [builder.call(fused, [spread, parts[p], total[at + p]]) for p in range(wide)]
            total = [*total[:at], *added, *total[at + wide :]]
    for phi, begin, then in zip((k, *phis), (first, *sums), (builder.add(k, _INT(steps)), *total), strict=True):
        phi.add_incoming(begin, above)
        phi.add_incoming(then, inside)
    builder.branch(head)
    builder.position_at_end(below)
    return phis


def _emit_turn(builder: Any, number: Any, stored: Any, step: Any, out: Any, out_step: Any) -> None:
    """A square of one vector's side, transposed: halves of pairs of rows are exchanged, then quarters, and so on."""
    vector = _vector(number)
    side = half = vector.count
    rows = [_load(builder, stored, builder.mul(step, _INT(row)), vector) for row in range(side)]
    while half > 1:
        half //= 2
        upper = [side + j - half if j // half % 2 else j for j in range(side)]
        lower = [side + j if j // half % 2 else j + half for j in range(side)]
        for row in range(side):
            if not row // half % 2:
                pair = rows[row], rows[row + half]
                rows[row] = builder.shuffle_vector(*pair, _mask(upper))
                rows[row + half] = builder.shuffle_vector(*pair, _mask(lower))
    for row, value in enumerate(rows):
        _store(builder, value, out, builder.mul(out_step, _INT(row)))


def _emit_line(builder: Any, number: Any, stored: Any, strip: Any) -> None:
    """Three vectors as they lie."""
    for part in range(STRIP):
        _store(builder, _load(builder, stored, _INT(part * VECTOR), _vector(number)), strip, _INT(part * VECTOR))


def _emit_number(builder: Any, number: Any, source: Any, target: Any) -> None:
    """One number."""
    _store(builder, _load(builder, source, _INT(0), number), target, _INT(0))


@intrinsic
def tile(typing_context, x, strip, depth, out, out_step, ahead, one):  # type: ignore[no-untyped-def]
    return _written(_emit_tile, 6)(typing_context, one)


@intrinsic
def narrow_tile(typing_context, x, x_step, strip, depth, out, out_step, one):  # type: ignore[no-untyped-def]
    return _written(_emit_narrow, 6)(typing_context, one)


@intrinsic
def copy(typing_context, source, target, size):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        source, target, size = arguments
        byte = _BYTE.as_pointer()
        cgutils.raw_memcpy(builder, builder.inttoptr(target, byte), builder.inttoptr(source, byte), size, 1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@intrinsic
def turn(typing_context, stored, step, out, out_step, one):  # type: ignore[no-untyped-def]
    return _written(_emit_turn, 4)(typing_context, one)


@intrinsic
def line(typing_context, stored, strip, one):  # type: ignore[no-untyped-def]
    return _written(_emit_line, 2)(typing_context, one)


@intrinsic
def one_number(typing_context, source, target, one):  # type: ignore[no-untyped-def]
    return _written(_emit_number, 2)(typing_context, one)
