"""Calico's label selectors: `rack == 'r1' && !has(edge)`.

Grammar and quirks as in libcalico-go/lib/selector (tokenizer/tokenizer.go, parser/parser.go): strings stand
in single or double quotes and know no escapes, only blanks and tabs are space, `!=` and `not in` are true
where the label is missing, the empty selector and `global()` match everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

LONGEST = 4096
"""Characters in a selector: etcd takes 1.5 MB, nobody writes that."""
DEEPEST = 32
"""Parentheses inside parentheses."""

Labels = Mapping[str, str]
Test = Callable[[Labels], bool]


class SelectorError(ValueError):
    """The selector does not parse; the sentence names the column (from 1) and what was expected there."""


@dataclass(frozen=True, slots=True)
class Selector:
    """A parsed selector."""

    text: str
    test: Test

    def matches(self, labels: Labels) -> bool:
        return self.test(labels)


@lru_cache(maxsize=1024)
def parse(text: str) -> Selector:
    """Read a selector. Raises SelectorError, and nothing else, for whatever text."""
    if len(text) > LONGEST:
        raise SelectorError(f"it has {len(text)} characters; at most {LONGEST} are read")
    tokens = _tokens(text)
    if tokens[0].kind == "end":
        return Selector(text, _everything)
    parser = _Parser(tokens)
    test = parser.alternatives(0)
    parser.expect("end", "&&, || or the end")
    return Selector(text, test)


class _Token(NamedTuple):
    kind: str
    value: str
    column: int


_SPACE = " \t"
_LABEL = r"[a-zA-Z0-9_./-]{1,512}"
_SYMBOL = re.compile(r"==|!=|&&|\|\||[(){},!]")
_STRING = re.compile(r"""'([^']*)'|"([^"]*)\"""")
_OPERATOR = re.compile(r"contains|starts[ \t]*with|ends[ \t]*with|not[ \t]*in|in")
_CALL = re.compile(rf"(has)\([ \t]*({_LABEL})[ \t]*\)|(all|global)\([ \t]*\)")
_CALL_START = re.compile(r"(has|all|global)\(")
_NAME = re.compile(_LABEL)
_COMPARISONS: Mapping[str, Callable[[str, str], bool]] = {
    "==": lambda have, want: have == want,
    "contains": lambda have, want: want in have,
    "startswith": lambda have, want: have.startswith(want),
    "endswith": lambda have, want: have.endswith(want),
}


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while True:
        while at < len(text) and text[at] in _SPACE:
            at += 1
        if at == len(text):
            tokens.append(_Token("end", "", at + 1))
            return tokens
        token, at = _token(text, at, after_label=bool(tokens) and tokens[-1].kind == "label")
        tokens.append(token)


def _token(text: str, at: int, *, after_label: bool) -> tuple[_Token, int]:
    column = at + 1
    if match := _SYMBOL.match(text, at):
        return _Token(match[0], "", column), match.end()
    if match := _STRING.match(text, at):
        return _Token("string", match[1] if match[1] is not None else match[2], column), match.end()
    if text[at] in "'\"":
        raise SelectorError(f"column {column}: the string has no closing {text[at]}")
    if after_label:
        if match := _OPERATOR.match(text, at):
            return _Token(re.sub(r"[ \t]", "", match[0]), "", column), match.end()
        raise SelectorError(f"column {column}: expected an operator after the label")
    if match := _CALL.match(text, at):
        return _Token(match[1] or match[3], match[2] or "", column), match.end()
    if match := _CALL_START.match(text, at):
        inside = "one label name and )" if match[1] == "has" else ")"
        raise SelectorError(f"column {column}: expected {inside} after {match[0]}")
    if match := _NAME.match(text, at):
        return _Token("label", match[0], column), match.end()
    raise SelectorError(f"column {column}: unexpected character {text[at]!a}")


class _Parser:
    """Recursive descent: || binds weakest, then &&, then ! and a single comparison."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._tokens[self._at]
        if token.kind != "end":
            self._at += 1
        return token

    def _accept(self, kind: str) -> bool:
        if self._next.kind != kind:
            return False
        self._take()
        return True

    def expect(self, kind: str, wording: str) -> _Token:
        token = self._take()
        if token.kind != kind:
            found = "the end" if token.kind == "end" else token.value or token.kind
            raise SelectorError(f"column {token.column}: expected {wording}, found {found!a}")
        return token

    def alternatives(self, depth: int) -> Test:
        tests = [self._conjunction(depth)]
        while self._accept("||"):
            tests.append(self._conjunction(depth))
        if len(tests) == 1:
            return tests[0]
        return lambda labels: any(test(labels) for test in tests)

    def _conjunction(self, depth: int) -> Test:
        tests = [self._operation(depth)]
        while self._accept("&&"):
            tests.append(self._operation(depth))
        if len(tests) == 1:
            return tests[0]
        return lambda labels: all(test(labels) for test in tests)

    def _operation(self, depth: int) -> Test:
        negated = False
        while self._accept("!"):
            negated = not negated
        test = self._positive(depth)
        return (lambda labels: not test(labels)) if negated else test

    def _positive(self, depth: int) -> Test:
        token = self._take()
        match token.kind:
            case "has":
                return lambda labels: token.value in labels
            case "all" | "global":
                return _everything
            case "label":
                return self._comparison(token.value)
            case "(":
                if depth == DEEPEST:
                    raise SelectorError(f"column {token.column}: more than {DEEPEST} nested parentheses")
                inner = self.alternatives(depth + 1)
                self.expect(")", ")")
                return inner
            case kind:
                found = "the end" if kind == "end" else token.value or kind
                raise SelectorError(
                    f"column {token.column}: expected a label, has(…), all(), ! or (, found {found!a}"
                )

    def _comparison(self, label: str) -> Test:
        operator = self._take()
        match operator.kind:
            case "in":
                values = self._set()
                return lambda labels: labels.get(label) in values
            case "notin":
                values = self._set()
                return lambda labels: labels.get(label) not in values
            case "!=":
                value = self._string()
                return lambda labels: labels.get(label) != value
            case kind if kind in _COMPARISONS:
                holds, value = _COMPARISONS[kind], self._string()
                return lambda labels: label in labels and holds(labels[label], value)
            case _:
                raise SelectorError(f"column {operator.column}: expected an operator after {label!a}")

    def _string(self) -> str:
        return self.expect("string", "a string in quotes").value

    def _set(self) -> frozenset[str]:
        self.expect("{", "{ and strings in quotes")
        values: set[str] = set()
        while self._next.kind == "string":
            values.add(self._take().value)
            if not self._accept(","):
                break
        self.expect("}", "}")
        return frozenset(values)


def _everything(labels: Labels) -> bool:  # noqa: ARG001 - a test like the others
    return True
