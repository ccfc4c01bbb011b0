"""Short vectors for Numba: values `<n x float>` and `<n x int>` that stay in registers.

Plain Numba loops over slices keep their sums in memory; with these types one number of the kernel's source is
one vector register. An array whose elements are records of n floats (`vector_dtype`) tells the compiler how
wide the vectors are, so that one source serves every width and Numba's cache on disk can hold all of them.
Vectors know `+ - *` (a plain number on the left stands for all lanes), integers `+ * >> &` as well.
"""

# mypy: disable-error-code="misc,no-untyped-def,no-untyped-call,untyped-decorator"
# (Numba's and llvmlite's base classes and decorators carry no types.)
# ruff: noqa: ARG001, ARG002, ARG005
# (Numba lays down the arguments of everything here.)

import hashlib
import operator
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.imputils import lower_builtin
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

TABLE_LANES = 16
"""Lanes of the vectors in which weights and addresses are worked out."""

CACHE_LINE = 64
"""Bytes of a line of the cache."""

WINDOW = 2 * TABLE_LANES
"""Numbers from which `pick` takes some."""

_SOURCES = [Path(__file__).with_name(name) for name in ("_vectors.py", "_rays.py", "_footprint.py")]
_VERSION = hashlib.sha256(b"".join(source.read_bytes() for source in _SOURCES)).hexdigest()[:8]
"""Part of the vectors' type: Numba's cache watches only the file of the loops, which compile these in."""

_INDEX = ir.IntType(32)
_ONE_ROUNDING = ("contract",)  # multiply and add may fuse; nothing else is reordered


def _name_records_by_content() -> None:
    """Let the compiled name of a function tell records apart.

    Numba (0.68) names a record type after a number that counts types as they come up in a process. Code for two widths
    that was cached by two processes can then have one name, and a third process that loads both links every call to the
    one it loaded first: wrong numbers, and no word about it.
    """
    types.Record.mangling_args = property(lambda record: (type(record).__name__, (record.name,)))


_name_records_by_content()


def vector_dtype(lanes: int) -> np.dtype[np.void]:
    """Return the element type of an array whose every element is `lanes` float32 numbers."""
    return np.dtype([(f"lanes_{_VERSION}", np.float32, (lanes,))])


class Vector(types.Type):
    """The Numba type of `lanes` numbers of one `element` type (float32 or int32)."""

    def __init__(self, element: types.Type, lanes: int) -> None:
        self.element, self.lanes = element, lanes
        super().__init__(name=f"vector({element} x {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(_element_ir(fe_type.element), fe_type.lanes))


_FLOATS = Vector(types.float32, TABLE_LANES)
_INTEGERS = Vector(types.int32, TABLE_LANES)


def _element_ir(element):
    return ir.FloatType() if element == types.float32 else ir.IntType(32)


def _vector_ir(vector):
    return ir.VectorType(_element_ir(vector.element), vector.lanes)


def _constant(vector, values):
    return ir.Constant(_vector_ir(vector), list(values))


def _splat(builder, vector, number):
    undefined = ir.Constant(_vector_ir(vector), ir.Undefined)
    first = builder.insert_element(undefined, number, _INDEX(0))
    return builder.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(_INDEX, vector.lanes), [0] * vector.lanes)
    )


def _spread(builder, sig, args):
    """Return the arguments as vectors: plain numbers are copied to all lanes."""
    return [
        value if isinstance(kind, Vector) else _splat(builder, sig.return_type, value)
        for kind, value in zip(sig.args, args, strict=True)
    ]


def _elementwise(*args):
    """Return the signature of an operation on vectors of one type and plain numbers; None without a vector."""
    vectors = [arg for arg in args if isinstance(arg, Vector)]
    if not vectors:
        return None
    return signature(vectors[0], *[arg if isinstance(arg, Vector) else vectors[0].element for arg in args])


@infer_global(operator.add)
@infer_global(operator.sub)
@infer_global(operator.mul)
@infer_global(operator.rshift)
@infer_global(operator.and_)
class _Operator(AbstractTemplate):
    def generic(self, args, kws):
        return _elementwise(*args)


def _lower(symbol, on_floats, on_integers):
    def operation(context, builder, sig, args):
        left, right = _spread(builder, sig, args)
        if sig.return_type.element == types.float32:
            return getattr(builder, on_floats)(left, right, flags=_ONE_ROUNDING)
        return getattr(builder, on_integers)(left, right)

    lower_builtin(symbol, Vector, Vector)(operation)
    lower_builtin(symbol, types.Number, Vector)(operation)
    lower_builtin(symbol, Vector, types.Number)(operation)


_lower(operator.add, "fadd", "add")
_lower(operator.sub, "fsub", "sub")
_lower(operator.mul, "fmul", "mul")
_lower(operator.rshift, None, "ashr")
_lower(operator.and_, None, "and_")


def _choose(comparison):
    def operation(context, builder, sig, args):
        left, right = _spread(builder, sig, args)
        if sig.return_type.element == types.float32:
            takes_left = builder.fcmp_ordered(comparison, left, right)
        else:
            takes_left = builder.icmp_signed(comparison, left, right)
        return builder.select(takes_left, left, right)

    return operation


@intrinsic
def minimum(typing, left, right):
    """Return the smaller of two vectors, lane by lane."""
    return _elementwise(left, right), _choose("<")


@intrinsic
def maximum(typing, left, right):
    """Return the larger of two vectors, lane by lane."""
    return _elementwise(left, right), _choose(">")


@intrinsic
def keep(typing, values, numbers, low, high):
    """Return `values` where `low` <= `numbers` <= `high` (integers or vectors), 0 in the other lanes."""
    limits = [limit if isinstance(limit, Vector) else types.int32 for limit in (low, high)]

    def operation(context, builder, sig, args):
        low_lanes, high_lanes = (
            value if isinstance(kind, Vector) else _splat(builder, numbers, value)
            for kind, value in zip(sig.args[2:], args[2:], strict=True)
        )
        inside = builder.and_(
            builder.icmp_signed(">=", args[1], low_lanes), builder.icmp_signed("<=", args[1], high_lanes)
        )
        return builder.select(inside, args[0], _constant(values, [0.0] * values.lanes))

    return values(values, numbers, *limits), operation


@intrinsic
def inverse(typing, values, least):
    """Return 1 / `values` where they exceed `least`, 0 in the other lanes."""

    def operation(context, builder, sig, args):
        ones, nothing = (_constant(values, [number] * values.lanes) for number in (1.0, 0.0))
        exceeds = builder.fcmp_ordered(">", args[0], _splat(builder, values, args[1]))
        return builder.select(exceeds, builder.fdiv(ones, args[0]), nothing)

    return values(values, types.float32), operation


@intrinsic
def counting(typing):
    """Return the integers 0, 1, 2, ... one in each of the 16 lanes."""
    return _INTEGERS(), lambda context, builder, sig, args: _constant(_INTEGERS, range(TABLE_LANES))


@intrinsic
def to_float(typing, numbers):
    """Return 16 integers as float32."""
    return _FLOATS(numbers), lambda context, builder, sig, args: builder.sitofp(args[0], _vector_ir(_FLOATS))


@intrinsic
def total(typing, values):
    """Return the sum over the 16 lanes, halves first."""

    def operation(context, builder, sig, args):
        lanes, rest = values.lanes, args[0]
        while lanes > 1:
            lanes //= 2
            halves = [
                builder.shuffle_vector(
                    rest, rest, ir.Constant(ir.VectorType(_INDEX, lanes), list(range(start, start + lanes)))
                )
                for start in (0, lanes)
            ]
            rest = builder.fadd(*halves)
        return builder.extract_element(rest, _INDEX(0))

    return types.float32(values), operation


@intrinsic
def width(typing, array):
    """Return how many floats one element of `array` holds."""
    lanes = array.dtype.size // 4
    return types.intp(array), lambda context, builder, sig, args: ir.IntType(64)(lanes)


@intrinsic
def zeros(typing, like):
    """Return a vector of zeros, as wide as the elements of `like`."""
    vector = Vector(types.float32, like.dtype.size // 4)
    return vector(like), lambda context, builder, sig, args: _constant(vector, [0.0] * vector.lanes)


@intrinsic
def table_zeros(typing):
    """Return 16 zeros."""
    return _FLOATS(), lambda context, builder, sig, args: _constant(_FLOATS, [0.0] * TABLE_LANES)


def _address(context, builder, sig, args, element):
    """Return the address of number `args[1]` in the contiguous array `args[0]`: no bounds, no negative index."""
    data = context.make_array(sig.args[0])(context, builder, args[0]).data
    return builder.gep(builder.bitcast(data, element.as_pointer()), [args[1]])


def _load(vector):
    def operation(context, builder, sig, args):
        address = _address(context, builder, sig, args, _element_ir(vector.element))
        value = builder.load(builder.bitcast(address, _vector_ir(vector).as_pointer()))
        value.align = 4
        return value

    return operation


@intrinsic
def load(typing, array, offset):
    """Return the vector that starts `offset` floats into `array`, whose elements say how wide it is."""
    vector = Vector(types.float32, array.dtype.size // 4)

    return vector(array, types.intp), _load(vector)


@intrinsic
def prefetch(typing, array, offset):
    """Ask for the element that is `offset` floats into `array`, which may lie beyond its ends, to come to the cache."""

    def operation(context, builder, sig, args):
        address = _address(context, builder, sig, args, ir.FloatType())
        pointer = builder.bitcast(address, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, *[_INDEX] * 3])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        for line in range(0, array.dtype.size, CACHE_LINE):
            builder.call(function, [builder.gep(pointer, [_INDEX(line)]), _INDEX(0), _INDEX(3), _INDEX(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), operation


@intrinsic
def load_floats(typing, table, offset):
    """Return 16 numbers, `offset` numbers into a table of float32."""
    return _FLOATS(table, types.intp), _load(_FLOATS)


@intrinsic
def load_integers(typing, table, offset):
    """Return 16 numbers, `offset` numbers into a table of int32."""
    return _INTEGERS(table, types.intp), _load(_INTEGERS)


@intrinsic
def store(typing, array, offset, value):
    """Put a vector `offset` numbers into `array`."""

    def operation(context, builder, sig, args):
        address = _address(context, builder, sig, args, _element_ir(value.element))
        builder.store(args[2], builder.bitcast(address, _vector_ir(value).as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, value), operation


@intrinsic
def item(typing, table, index):
    """Return `table[index]`, without Numba's care for negative indices (it costs a tenth of the speed)."""

    def operation(context, builder, sig, args):
        return builder.load(_address(context, builder, sig, args, _element_ir(table.dtype)))

    return table.dtype(table, types.intp), operation


def _has(feature: str) -> bool:
    """Return whether LLVM compiles for a processor with `feature`."""
    *_, features = cpu_target.target_context.codegen().magic_tuple()  # a part of the key of Numba's cache
    return f"+{feature}" in features.split(",")


def picks_at_once() -> bool:
    """Return whether an instruction of this processor does what `pick` does: choose among two registers (AVX-512)."""
    return _has("avx512f")


@intrinsic
def fits_register(typing, array):
    """Return whether one of the processor's registers holds an element of `array`."""
    lanes = 16 if _has("avx512f") else 8 if _has("avx") else 4
    fits = array.dtype.size // 4 <= lanes
    return types.boolean(array), lambda context, builder, sig, args: ir.IntType(1)(fits)


@intrinsic
def pick(typing, array, start, places):
    """Return the numbers at 16 `places` (modulo `WINDOW`) of the window that begins `start` numbers into `array`.

    Where one instruction chooses, projections take a third of the time that they take with 16 loads.
    """

    def operation(context, builder, sig, args):
        window = _address(context, builder, sig, args, ir.FloatType())
        choose = _permute if picks_at_once() else _load_each
        return choose(builder, window, args[2])

    return _FLOATS(array, types.intp, places), operation


def _permute(builder, window, places):
    vector = _vector_ir(_FLOATS)
    halves = [
        builder.load(builder.bitcast(builder.gep(window, [_INDEX(first)]), vector.as_pointer()))
        for first in (0, TABLE_LANES)
    ]
    for half in halves:
        half.align = 4
    kind = ir.FunctionType(vector, [vector, places.type, vector])
    return builder.call(_declare(builder, "llvm.x86.avx512.vpermi2var.ps.512", kind), [halves[0], places, halves[1]])


def _load_each(builder, window, places):
    picked = ir.Constant(_vector_ir(_FLOATS), ir.Undefined)
    inside = builder.and_(places, _constant(_INTEGERS, [WINDOW - 1] * TABLE_LANES))
    for lane in map(_INDEX, range(TABLE_LANES)):
        address = builder.gep(window, [builder.extract_element(inside, lane)])
        picked = builder.insert_element(picked, builder.load(address), lane)
    return picked


def _declare(builder, name, kind):
    """Return an intrinsic of LLVM that llvmlite has no name for."""
    return builder.module.globals.get(name) or ir.Function(builder.module, kind, name)


@intrinsic
def add_between(typing, array, offset, first, end, values):
    """Add lanes `first` to `end` of `values` to the 16 numbers `offset` into `array`; the others stay untouched."""

    def operation(context, builder, sig, args):
        address = _address(context, builder, sig, args, ir.FloatType())
        vector, lanes = _vector_ir(_FLOATS), _constant(_INTEGERS, range(TABLE_LANES))
        low, high = (_splat(builder, _INTEGERS, limit) for limit in args[2:4])
        mask = builder.and_(builder.icmp_signed(">=", lanes, low), builder.icmp_signed("<", lanes, high))
        read = ir.FunctionType(vector, [address.type, _INDEX, mask.type, vector])
        write = ir.FunctionType(ir.VoidType(), [vector, address.type, _INDEX, mask.type])
        nothing = _constant(_FLOATS, [0.0] * TABLE_LANES)
        load_function = _declare(builder, "llvm.masked.load.v16f32.p0", read)
        old = builder.call(load_function, [address, _INDEX(4), mask, nothing])
        new = builder.fadd(old, args[4])
        builder.call(_declare(builder, "llvm.masked.store.v16f32.p0", write), [new, address, _INDEX(4), mask])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int32, types.int32, values), operation
