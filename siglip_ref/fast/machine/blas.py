"""SciPy's matrix product, called from inside kernels: one thread, in place, no temporary."""

import ctypes
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from siglip_ref.fast.machine.compile import COUNT, inner

NO, YES = COUNT(ord("N")), COUNT(ord("T"))  # transpose the operand?
# OpenBLAS does up to so many multiplications with the numbers as they lie, without packing them first (its
# interface/gemm.c); it has other kernels for that.
SMALL = 10**6

# What the Fortran routine takes, as SciPy states it: 32-bit integers and everything by address.
_SIGNATURE = "void (char *, char *, int *, int *, int *, {0} *, {0} *, int *, {0} *, int *, {0} *, {0} *, int *)"


@cache
def gemm_address(dtype: np.dtype[Any]) -> int:
    """Where `sgemm` (float32) or `dgemm` (float64) begins.

    Raises
    ------
    ImportError : SciPy is missing, or its BLAS takes other integers than kernels pass
    """
    from scipy.linalg import cython_blas

    return _address(cython_blas, *{"f": ("sgemm", "s"), "d": ("dgemm", "d")}[dtype.char])


def require() -> None:
    """ImportError where kernels cannot run: no Numba or SciPy, or a BLAS that cannot be held to one thread."""
    from siglip_ref.fast.machine.pool import threads

    gemm_address(np.dtype(np.float32))
    with threads():
        pass


def _address(module: ModuleType, name: str, letter: str) -> int:
    capsule = ctypes.py_object(module.__pyx_capi__[name])
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    signature = name_of(capsule)
    number = f"__pyx_t_5scipy_6linalg_11cython_blas_{letter}"
    if signature.decode() not in (_SIGNATURE.format(number), _SIGNATURE.format({"s": "float", "d": "double"}[letter])):
        raise ImportError(f"SciPy's {name} is {signature.decode()}: kernels cannot call it")
    return int(pointer_of(capsule, signature))


@intrinsic
def _gemm(  # type: ignore[no-untyped-def]
    typing_context, address, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc
):
    """The call itself: every argument goes onto the stack, and its address to the routine."""
    signature = types.void(
        types.intp, types.intp, types.intp, types.intp, types.intp, types.intp,
        alpha, types.intp, types.intp, types.intp, types.intp, alpha, types.intp, types.intp,
    )  # fmt: skip

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = arguments
        byte, integer, void = ir.IntType(8), ir.IntType(32), ir.VoidType()

        def small(value: Any, kind: Any) -> Any:
            return cgutils.alloca_once_value(builder, builder.trunc(value, kind))

        def pointer(value: Any) -> Any:
            return builder.inttoptr(value, alpha.type.as_pointer())

        passed = [
            small(trans_a, byte), small(trans_b, byte), small(m, integer), small(n, integer), small(k, integer),
            cgutils.alloca_once_value(builder, alpha), pointer(a), small(lda, integer), pointer(b), small(ldb, integer),
            cgutils.alloca_once_value(builder, beta), pointer(c), small(ldc, integer),
        ]  # fmt: skip
        routine = ir.FunctionType(void, [value.type for value in passed]).as_pointer()
        builder.call(builder.inttoptr(address, routine), passed)
        return context.get_dummy_value()

    return signature, generate


@inner()
def gemm(
    address: int, trans_a: int, trans_b: int, m: int, n: int, k: int, alpha: Any, a: int, lda: int, b: int, ldb: int,
    beta: Any, c: int, ldc: int,
) -> None:  # fmt: skip
    """C = alpha A B + beta C for row-major matrices: A (m, k) and B (k, n) after transposing, C (m, n).

    a, b, c are addresses of the first number, lda, ldb, ldc the numbers from one stored row to the next. With beta = 0
    C is only written.
    """
    # A row-major matrix is its transpose in Fortran's eyes: C.T = B.T A.T
    _gemm(address, trans_b, trans_a, n, m, k, alpha, b, ldb, a, lda, beta, c, ldc)  # type: ignore[call-arg]  # intrinsic
