"""Small changes to a Python or SQL file that its tests should notice.

    mutations_of(Path("ray_memprof/query/sql/device/books.sql"), text)    # where each is, and what stands there instead

Nothing is applied or run here. What only people read (comments, annotations, the words of messages) is left alone, and
so are asserts, imports and decorators, whose changes say nothing about the tests.
"""

import ast
import io
import itertools
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

PYTHON_SWAPS = {
    **{
        "<": ("<=", ">="),
        "<=": ("<", ">"),
        ">": (">=", "<="),
        ">=": (">", "<"),
        "==": ("!=",),
        "!=": ("==",),
    },
    **{
        "+": ("-",),
        "-": ("+",),
        "*": ("+",),
        "/": ("*",),
        "//": ("*",),
        "%": ("*",),
        "|": ("&",),
        "&": ("|",),
    },
    **{"+=": ("-=", "="), "-=": ("+=", "="), "*=": ("+=",), "|=": ("&=",), "<<": (">>",), ">>": ("<<",)},
    **{"and": ("or",), "or": ("and",), "not": ("",), "is": ("is not",), "in": ("not in",)},
    **{"True": ("False",), "False": ("True",), "break": ("continue",), "continue": ("break",)},
    **{"min": ("max",), "max": ("min",), "any": ("all",), "all": ("any",)},
}
CALLED = ("min", "max", "any", "all")
"""Words that are swapped only where they are called."""
SQL_SWAPS = {
    **{"<": ("<=", ">"), "<=": ("<", ">"), ">": (">=", "<"), ">=": (">", "<"), "=": ("<>",), "<>": ("=",)},
    **{"+": ("-",), "-": ("+",), "*": ("/",), "/": ("*",)},
    **{
        "MIN": ("MAX",),
        "MAX": ("MIN", "SUM"),
        "SUM": ("MAX", "MIN"),
        "ARG_MIN": ("ARG_MAX",),
        "ARG_MAX": ("ARG_MIN",),
    },
    **{"GREATEST": ("LEAST",), "LEAST": ("GREATEST",), "LAG": ("LEAD",), "LEAD": ("LAG",)},
    **{"FIRST": ("LAST",), "LAST": ("FIRST",), "ASC": ("DESC",), "DESC": ("ASC",), "TRUE": ("FALSE",)},
    **{
        "FALSE": ("TRUE",),
        "AND": ("OR",),
        "OR": ("AND",),
        "NOT": ("",),
        "DISTINCT": ("",),
        "IN": ("NOT IN",),
    },
    **{"LEFT JOIN": ("INNER JOIN",), "INNER JOIN": ("LEFT JOIN",), "FULL JOIN": ("LEFT JOIN",)},
    **{
        "ASOF JOIN": ("ASOF LEFT JOIN",),
        "UNION ALL": ("UNION",),
        "IS NULL": ("IS NOT NULL",),
        "FLOOR": ("CEIL",),
    },
    **{"UNBOUNDED PRECEDING": ("CURRENT ROW",), "PARTITION BY": ("ORDER BY",)},
}
LEAST_HINT = 65536
"""A LIMIT of so many rows or more cuts no answer off: it only leads DuckDB's optimiser."""
_SQL_TOKEN = re.compile(
    r"--[^\n]*|(?P<text>'(?:[^']|'')*')|(?P<number>\b\d+(?:\.\d+)?(?:e\d+)?\b)|(?P<word>\"[^\"]+\"|[A-Za-z_]\w*)"
    r"|(?P<sign>::|:=|=>|->>?|<=|>=|<>|!=|\|\||[^\s\w])"
)
_NOTHING = (tokenize.TokenInfo(tokenize.NL, "", (1, 0), (1, 0), ""),)
_CONDITIONS = ("WHERE", "HAVING", "QUALIFY")
_CLAUSES = {
    *_CONDITIONS,
    "GROUP",
    "ORDER",
    "WINDOW",
    "LIMIT",
    "UNION",
    "ROWS",
    "RANGE",
    "LEFT",
    "INNER",
    "SELECT",
}
_STATEMENTS = (ast.AugAssign, ast.Raise, ast.Delete)


@dataclass(frozen=True, order=True)
class Mutation:
    """A piece of a file, from character `start` to before `end`, and what stands there instead."""

    start: int
    end: int
    new: str

    def applied_to(self, text: str) -> str:
        """The file with this change."""
        return text[: self.start] + self.new + text[self.end :]


def mutations_of(path: Path, text: str) -> list[Mutation]:
    """Every change to try, in the order of the file; some do not parse: see `is_valid`."""
    return sorted(set(_of_sql(text) if path.suffix == ".sql" else _of_python(text)))


def is_valid(path: Path, text: str, mutation: Mutation) -> bool:
    """Whether the changed file parses, and (in Python) has another meaning than before."""
    changed = mutation.applied_to(text)
    try:
        if path.suffix == ".sql":
            duckdb.extract_statements(changed)
            return True
        return ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))
    except (SyntaxError, duckdb.ParserException):
        return False


def _of_python(text: str) -> Iterator[Mutation]:
    tree, starts = ast.parse(text), _line_starts(text)
    skipped = list(_unread(tree, text, starts))
    tokens = [*_NOTHING, *tokenize.generate_tokens(io.StringIO(text).readline)]
    edits = itertools.chain(_python_swaps(tokens, starts), _python_statements(tree, text, starts))
    return (one for one in edits if not any(start <= one.start < end for start, end in skipped))


def _python_swaps(tokens: Sequence[tokenize.TokenInfo], starts: Sequence[int]) -> Iterator[Mutation]:
    for before, token, following in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if token.type == tokenize.NUMBER:
            replacements: tuple[str, ...] = (f"({token.string} + 1)", f"({token.string} - 1)")
        elif token.type in (tokenize.OP, tokenize.NAME):
            replacements = PYTHON_SWAPS.get(token.string, ())
            if token.string in CALLED and following.string != "(":
                replacements = ()
            if token.string == "*" and before.string in ("(", ",", "[", "="):  # unpacks
                replacements = ()
        else:
            continue
        place = starts[token.start[0] - 1] + token.start[1]
        for new in replacements:
            yield Mutation(place, place + len(token.string), new)


def _python_statements(tree: ast.AST, text: str, starts: Sequence[int]) -> Iterator[Mutation]:
    """Statements left out, and results left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and node.value is not None:
            if not (isinstance(node.value, ast.Constant) and node.value.value is None):
                yield Mutation(*_span(node.value, text, starts), "None")
        elif isinstance(node, ast.stmt) and _does_something(node):
            yield Mutation(*_span(node, text, starts), "pass")


def _does_something(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    if isinstance(node, ast.Assign):  # not to a name alone: the next line that reads it would raise
        return any(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
    return isinstance(node, _STATEMENTS)


def _unread(tree: ast.AST, text: str, starts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges that no test should have to notice."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert | ast.Import | ast.ImportFrom):
            yield _span(node, text, starts)
        if isinstance(node, ast.If) and "__name__" in ast.dump(node.test):
            yield _span(node, text, starts)
        annotations = (getattr(node, "annotation", None), getattr(node, "returns", None))
        for part in (*annotations, *getattr(node, "decorator_list", ())):
            if isinstance(part, ast.expr):
                yield _span(part, text, starts)


def _line_starts(text: str) -> list[int]:
    return [0, *itertools.accumulate(map(len, text.splitlines(keepends=True)))]


def _span(node: ast.expr | ast.stmt, text: str, starts: Sequence[int]) -> tuple[int, int]:
    """Characters of a node, whose columns are bytes."""
    assert node.end_lineno is not None and node.end_col_offset is not None
    ends = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
    first, last = (
        starts[row - 1] + len(text[starts[row - 1] : starts[row]].encode()[:column].decode())
        for row, column in ends
    )
    return first, last


def _of_sql(text: str) -> Iterator[Mutation]:
    tokens = [found for found in _SQL_TOKEN.finditer(text) if found.lastgroup]
    for index, token in enumerate(tokens):
        yield from _sql_swaps(tokens, index)
        word = token.group().upper()
        if word in _CONDITIONS:
            yield Mutation(token.end(), _end_of(tokens, index + 1)[-1].end(), " TRUE")
        elif word == "COALESCE":
            yield from _coalesce(text, tokens, index)
        elif word == "BY" and tokens[index - 1].group().upper() == "ORDER":
            yield from _turned(tokens, index + 1)


def _sql_swaps(tokens: Sequence[re.Match[str]], index: int) -> Iterator[Mutation]:
    token = tokens[index]
    if token.lastgroup == "number":
        if not _is_idle(tokens, index):
            yield from (Mutation(*token.span(), f"({token.group()} {sign} 1)") for sign in "+-")
    elif token.lastgroup == "text":
        if re.fullmatch(r"'\w+'", token.group()):  # a word that is compared, not a sentence
            yield Mutation(*token.span(), token.group()[:-1] + "_'")
    else:
        for pieces in (tokens[index : index + 2], tokens[index : index + 1]):
            words = " ".join(piece.group().upper() for piece in pieces)
            for new in SQL_SWAPS.get(words, ()):
                yield Mutation(pieces[0].start(), pieces[-1].end(), new)


def _is_idle(tokens: Sequence[re.Match[str]], index: int) -> bool:
    """Whether no answer depends on a number: EXISTS (SELECT 1 ...), and a LIMIT that only leads DuckDB's optimiser."""
    before = [token.group().upper() for token in tokens[max(0, index - 3) : index]]
    is_limit = before[-1:] == ["LIMIT"] and float(tokens[index].group()) >= LEAST_HINT
    return is_limit or before == ["EXISTS", "(", "SELECT"]


def _end_of(tokens: Sequence[re.Match[str]], index: int, *, at_comma: bool = False) -> list[re.Match[str]]:
    """Tokens from `index` to the end of their clause, or of their item of a list."""
    depth, found = 0, []
    for token in tokens[index:]:
        sign = token.group()
        if depth == 0 and (sign in ");" or sign.upper() in _CLAUSES or (at_comma and sign == ",")):
            break
        depth += (sign in "([") - (sign in ")]")
        found.append(token)
    return found


def _coalesce(text: str, tokens: Sequence[re.Match[str]], index: int) -> Iterator[Mutation]:
    """COALESCE(a, b) becomes a."""
    first = _end_of(tokens, index + 2, at_comma=True)
    whole = _end_of(tokens, index + 2)
    end = tokens[index + 2 + len(whole)].end()
    yield Mutation(tokens[index].start(), end, f"({text[first[0].start() : first[-1].end()]})")


def _turned(tokens: Sequence[re.Match[str]], index: int) -> Iterator[Mutation]:
    """The same ORDER BY with one key in the opposite direction; where a direction is written, a swap does it."""
    while index < len(tokens):
        item = _end_of(tokens, index, at_comma=True)
        if not item:
            return
        if not {"ASC", "DESC", "NULLS"} & {token.group().upper() for token in item}:
            yield Mutation(item[-1].end(), item[-1].end(), " DESC")
        index += len(item)
        if index >= len(tokens) or tokens[index].group() != ",":
            return
        index += 1
