"""Sizes that a model names: symbols like `batch`, and expressions of them like `past + 1`."""

import ast
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

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
# What some exporters write where a size has no name: equal ones need not be equal sizes.
_NAMELESS = frozenset(("", "?", "*", "-1", "None"))
_LONGEST = 200  # characters of an expression; a longer name is a symbol


def dimension_name(text: str) -> str | None:
    """The name of a size, or None where what the file has in its place names nothing (`?`)."""
    return None if text.strip() in _NAMELESS else text


@dataclass
class Symbols:
    """The sizes of a model's named dimensions, as far as they are known.

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
    def of(cls, shapes: Iterable[Sequence[int | str | None]]) -> "Symbols":
        """The named dimensions of several shapes, no size known."""
        return cls(frozenset(dim for shape in shapes for dim in shape if isinstance(dim, str)))

    def copy(self) -> "Symbols":
        """The same, to be bound on its own."""
        return Symbols(self.declared, dict(self.sizes))

    def unknown(self, dim: str) -> tuple[str, ...]:
        """The symbols whose size must be known before `dim` has one."""
        if dim in self.sizes:
            return ()
        return tuple(name for name in self._names(dim) if name not in self.sizes)

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
        return ast.unparse(_Numbers(self.sizes).visit(tree))

    def bind(self, dim: str, size: int) -> bool:
        """Learn that a dimension has a size; False when it contradicts what is known.

        Of an expression with one unknown symbol, that symbol is solved for.
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
        """Learn several sizes, plain names before the expressions that need them.

        Returns:
            The position of a pair that contradicts the others; None when all agree.
        """
        left = list(range(len(pairs)))
        while left:
            index = min(left, key=lambda i: (len(self.unknown(pairs[i][0])), i))
            left.remove(index)
            if not self.bind(*pairs[index]):
                return index
        return None

    def _solution(self, tree: ast.expr, name: str, size: int) -> int | None:
        """The value of one symbol at which an expression, taken as linear, has a size."""
        ends = [self._evaluated(tree, {**self.sizes, name: at}, least=None) for at in (0, 1)]
        if ends[0] is None or ends[1] is None or ends[0] == ends[1]:
            return None
        found = Fraction(size - ends[0], ends[1] - ends[0])
        if found.denominator != 1 or found < 0:
            return None
        at = int(found)
        return at if self._evaluated(tree, {**self.sizes, name: at}) == size else None

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

    def _names(self, dim: str) -> tuple[str, ...]:
        tree = self._expression(dim)
        return (dim,) if tree is None else _symbols(tree)

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


class _Numbers(ast.NodeTransformer):
    """Put numbers in the place of known names."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self._sizes[node.id]) if node.id in self._sizes else node


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
    """The names in an expression but those of functions, each once."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return tuple(
        dict.fromkeys(
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and id(node) not in called
        )
    )


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
