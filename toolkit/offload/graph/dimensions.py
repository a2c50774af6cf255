"""Named sizes of a model: symbols like `batch`, and expressions of them like `past + 1`."""

import ast
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

from offload.errors import InputError

Dim: TypeAlias = int | str | None
"""A size, its name, or None where it is neither known nor named."""

_OPERATORS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: lambda a, b: a % b,
}
_FUNCTIONS: Mapping[str, Callable[..., Fraction]] = {
    "floor": lambda a: Fraction(math.floor(a)),
    "ceil": lambda a: Fraction(math.ceil(a)),
    "ceiling": lambda a: Fraction(math.ceil(a)),
    "max": max,
    "min": min,
}
# Some exporters write these for a size without a name: two of them need not be equal.
_NAMELESS = frozenset(("", "?", "*", "-1", "None"))
_LONGEST = 200  # characters of an expression; a longer name is a symbol


def dimension_name(text: str) -> str | None:
    """The name of a size; None for a placeholder such as `?`."""
    return None if text.strip() in _NAMELESS else text


def shape_text(shape: Sequence[Dim] | None) -> str:
    """A shape as `1x3x?`, with `?` for an unknown size."""
    if shape is None:
        return "of any rank"
    return "x".join("?" if size is None else str(size) for size in shape) or "scalar"


@dataclass
class Symbols:
    """The named dimensions of a model, and the sizes that are known of them.

    Exporters write plain names (`batch`) and expressions of them (`past + s`, `floor(h/4)`).
    A name that only looks like an expression (`batch-size`) is a symbol: an expression has a
    number in it, or a name that is itself a dimension.

    Attributes:
        declared: every dimension's name or expression, as the inputs declare them.
        sizes: known sizes by symbol.
    """

    declared: frozenset[str]
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, shapes: Iterable[Sequence[Dim]]) -> "Symbols":
        """The named dimensions of several shapes, no size known."""
        return cls(frozenset(dim for shape in shapes for dim in shape if isinstance(dim, str)))

    @classmethod
    def from_shapes(
        cls,
        declared: Mapping[str, Sequence[Dim] | None],
        shapes: Mapping[str, Sequence[int]],
    ) -> "Symbols":
        """The named dimensions of a model's inputs, with the sizes that follow from some shapes.

        Args:
            declared: the shape of each input of the model; None: any rank.
            shapes: sizes by input name.

        Raises:
            InputError: a shape is for an input that the model does not have, or contradicts the
                declared shape or another shape.
        """
        pairs: list[tuple[str, int]] = []
        owners: list[str] = []
        for name, sizes in shapes.items():
            if name not in declared:
                known = ", ".join(list(declared)[:8]) or "none"
                raise InputError(
                    f"the model has no input {name!r} to give a shape to; it has: {known}"
                )
            dims = declared[name]
            if dims is not None and (
                len(dims) != len(sizes)
                or any(
                    n < 0 or (isinstance(d, int) and d != n)
                    for d, n in zip(dims, sizes, strict=True)
                )
            ):
                raise _does_not_fit(name, dims, sizes)
            named = [(d, n) for d, n in zip(dims or (), sizes, strict=False) if isinstance(d, str)]
            pairs += named
            owners += [name] * len(named)
        symbols = cls.of(dims or () for dims in declared.values())
        wrong = symbols.bind_all(pairs)
        if wrong is not None:
            raise _does_not_fit(owners[wrong], declared[owners[wrong]], shapes[owners[wrong]])
        return symbols

    def copy(self) -> "Symbols":
        """A copy that can be bound independently."""
        return Symbols(self.declared, dict(self.sizes))

    def unknown(self, dim: str) -> tuple[str, ...]:
        """The symbols whose size must be known before `dim` has one."""
        if dim in self.sizes:
            return ()
        tree = self._expression(dim)
        names = (dim,) if tree is None else _symbols(tree)
        return tuple(name for name in names if name not in self.sizes)

    def size(self, dim: str) -> int | None:
        """The size of a dimension; None when a symbol is unknown or no whole size results."""
        if dim in self.sizes:
            return self.sizes[dim]
        tree = self._expression(dim)
        return None if tree is None else self._evaluated(tree, self.sizes)

    def substituted(self, dim: str) -> int | str:
        """The size of a dimension, or its expression with numbers for the symbols known."""
        size = self.size(dim)
        tree = self._expression(dim) if size is None else None
        if size is not None or tree is None:
            return dim if size is None else size
        return re.sub(r"\w+", lambda word: str(self.sizes.get(word[0], word[0])), dim)

    def bind(self, dim: str, size: int) -> bool:
        """Set the size of a dimension; False when it contradicts the known sizes.

        An expression with one unknown symbol is solved for that symbol.
        """
        unknown = self.unknown(dim)
        if not unknown:
            return self.size(dim) == size
        tree = self._expression(dim)
        if tree is None or len(unknown) > 1:
            self.sizes[dim] = size
            return True
        solution = self._solution(tree, unknown[0], size)
        if solution is not None:
            self.sizes[unknown[0]] = solution
        else:
            self.sizes[dim] = size
        return True

    def bind_all(self, pairs: Sequence[tuple[str, int]]) -> int | None:
        """Set several sizes, plain names before the expressions that need them.

        Returns:
            The position of a pair that contradicts the others; None when all agree.
        """
        remaining = list(range(len(pairs)))
        while remaining:
            index = min(remaining, key=lambda i: (len(self.unknown(pairs[i][0])), i))
            remaining.remove(index)
            if not self.bind(*pairs[index]):
                return index
        return None

    def _solution(self, tree: ast.expr, name: str, size: int) -> int | None:
        """The value of one symbol for which an expression, taken as linear, has a size."""
        ends = [self._evaluated(tree, {**self.sizes, name: at}, least=None) for at in (0, 1)]
        if ends[0] is None or ends[1] is None or ends[0] == ends[1]:
            return None
        solution = Fraction(size - ends[0], ends[1] - ends[0])
        if solution.denominator != 1 or solution < 0:
            return None
        value = int(solution)
        return value if self._evaluated(tree, {**self.sizes, name: value}) == size else None

    def _expression(self, dim: str) -> ast.expr | None:
        """The parsed expression; None for a symbol."""
        if len(dim) > _LONGEST:
            return None
        try:
            tree = ast.parse(dim.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
        if isinstance(tree, ast.Name | ast.Constant) or not _is_arithmetic(tree):
            return None
        has_number = any(isinstance(node, ast.Constant) for node in ast.walk(tree))
        return tree if has_number or not self.declared.isdisjoint(_symbols(tree)) else None

    def _evaluated(
        self, tree: ast.expr, sizes: dict[str, int], least: int | None = 0
    ) -> int | None:
        try:
            value = _value(tree, sizes)
        except (KeyError, ZeroDivisionError, OverflowError):
            return None
        if value.denominator != 1 or (least is not None and value < least):
            return None
        return int(value)


def _does_not_fit(name: str, declared: Sequence[Dim] | None, sizes: Sequence[int]) -> InputError:
    return InputError(
        f"input {name!r} has shape {shape_text(declared)}: {shape_text(sizes)} does not fit it"
    )


def _is_arithmetic(tree: ast.expr) -> bool:
    match tree:
        case ast.Name():
            return True
        case ast.Constant(value=int()):
            return True
        case ast.BinOp(left=left, op=op, right=right):
            return type(op) in _OPERATORS and _is_arithmetic(left) and _is_arithmetic(right)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_arithmetic(operand)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return name.lower() in _FUNCTIONS and bool(args) and all(map(_is_arithmetic, args))
    return False


def _symbols(tree: ast.expr) -> tuple[str, ...]:
    """The names in an expression, except for those of functions, each once."""
    nodes = list(ast.walk(tree))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    names = (node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in called)
    return tuple(dict.fromkeys(names))


def _value(tree: ast.expr, sizes: dict[str, int]) -> Fraction:
    match tree:
        case ast.Name(id=name):
            return Fraction(sizes[name])
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.UnaryOp(operand=operand):
            return -_value(operand, sizes)
        case ast.Call(func=ast.Name(id=name), args=args):
            return _FUNCTIONS[name.lower()](*(_value(arg, sizes) for arg in args))
    raise KeyError(ast.dump(tree))
