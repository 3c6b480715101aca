"""Calico's selector language: its grammar's corners, and that nothing can break the parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felix_like.calc.selector import DEEPEST, LONGEST, SelectorError, parse

NONE: dict[str, str] = {}

MATCHES = [
    ("a == 'b'", {"a": "b"}, True),
    ("a == 'b'", {"a": "c"}, False),
    ("a == 'b'", NONE, False),
    ('a == "b"', {"a": "b"}, True),
    ("a=='b'", {"a": "b"}, True),
    ("a\t==\t'b'", {"a": "b"}, True),
    ('a == "it\'s"', {"a": "it's"}, True),
    ("a == '\"'", {"a": '"'}, True),
    (r"a == 'back\slash'", {"a": r"back\slash"}, True),
    ("a == ''", {"a": ""}, True),
    ("a == ''", NONE, False),
    ("a != 'b'", {"a": "c"}, True),
    ("a != 'b'", {"a": "b"}, False),
    ("a != 'b'", NONE, True),
    ("a in {'b', \"c\"}", {"a": "c"}, True),
    ("a in {'b','c'}", {"a": "d"}, False),
    ("a in {'b'}", NONE, False),
    ("a in {}", {"a": ""}, False),
    ("a in {'b',}", {"a": "b"}, True),
    ("a not in {'b'}", {"a": "c"}, True),
    ("a not in {'b'}", {"a": "b"}, False),
    ("a not in {'b'}", NONE, True),
    ("a notin {'b'}", {"a": "b"}, False),
    ("a contains 'b'", {"a": "abc"}, True),
    ("a contains 'x'", {"a": "abc"}, False),
    ("a contains ''", NONE, False),
    ("a starts with 'ab'", {"a": "abc"}, True),
    ("a startswith 'bc'", {"a": "abc"}, False),
    ("a starts  with 'b'", NONE, False),
    ("a ends with 'bc'", {"a": "abc"}, True),
    ("a ends with 'ab'", {"a": "abc"}, False),
    ("a endswith 'b'", NONE, False),
    ("has(a)", {"a": ""}, True),
    ("has( a )", NONE, False),
    ("!has(a)", NONE, True),
    ("! ! !has(a)", {"a": "1"}, False),
    ("!!has(a)", {"a": "1"}, True),
    ("!a == 'b'", {"a": "c"}, True),
    ("all()", NONE, True),
    ("all( )", NONE, True),
    ("!all()", NONE, False),
    ("global()", {"a": "b"}, True),
    ("", NONE, True),
    (" \t", NONE, True),
    ("a == '1' || b == '2' && c == '3'", {"a": "1"}, True),
    ("(a == '1' || b == '2') && c == '3'", {"a": "1"}, False),
    ("a == '1' && b == '2' || c == '3'", {"c": "3"}, True),
    ("a == '1' && (b == '2' || c == '3')", {"c": "3"}, False),
    ("!(has(b) || !has(a))", {"a": "1"}, True),
    ("((((all()))))", NONE, True),
    ("kubernetes.io/arch == 'arm64'", {"kubernetes.io/arch": "arm64"}, True),
    ("-._/9 == 'x'", {"-._/9": "x"}, True),
    ("has == 'all'", {"has": "all"}, True),
    ("in in {'in'}", {"in": "in"}, True),
    ("contains contains 'not'", {"contains": "not"}, True),
]


@pytest.mark.parametrize(("text", "labels", "expected"), MATCHES)
def test_what_matches(text, labels, expected):
    assert parse(text).matches(labels) is expected


REFUSED = [
    ("b == b", "column 6: expected a string in quotes, found 'b'"),
    ("b contains b", "column 12: expected a string in quotes, found 'b'"),
    ("'b1' == b", "column 1: expected a label, has(…), all(), ! or (, found 'b1'"),
    ("b", "column 2: expected an operator after 'b'"),
    ("a b", "column 3: expected an operator after the label"),
    ("!", "column 2: expected a label, has(…), all(), ! or (, found 'the end'"),
    ("a == 'b' &", "column 10: unexpected character '&'"),
    ("a == 'b' |", "column 10: unexpected character '|'"),
    ("a = 'b'", "column 3: expected an operator after the label"),
    ("a != ||", "column 6: expected a string in quotes, found '||'"),
    ("a in {'', ||", "column 11: expected }, found '||'"),
    ("a in {'x' 'y'}", "column 11: expected }, found 'y'"),
    ("a in ''", "column 6: expected { and strings in quotes, found 'string'"),
    ('"FOO', 'column 1: the string has no closing "'),
    ("a == 'FOO\"", "column 6: the string has no closing '"),
    ("(", "column 2: expected a label, has(…), all(), ! or (, found 'the end'"),
    ("(a == 'foo'", "column 12: expected ), found 'the end'"),
    (")", "column 1: expected a label, has(…), all(), ! or (, found ')'"),
    ("()", "column 2: expected a label, has(…), all(), ! or (, found ')'"),
    ("all() all()", "column 7: expected &&, || or the end, found 'all'"),
    ("%", "column 1: unexpected character '%'"),
    ("a == 'b'\n", "column 9: unexpected character '\\n'"),
    ("has(foo) &&", "column 12: expected a label, has(…), all(), ! or (, found 'the end'"),
    ("has()", "column 1: expected one label name and ) after has("),
    ("has(a", "column 1: expected one label name and ) after has("),
    ("all(", "column 1: expected ) after all("),
    ("all(x)", "column 1: expected ) after all("),
    ("é == 'x'", "column 1: unexpected character '\\xe9'"),
]


@pytest.mark.parametrize(("text", "sentence"), REFUSED)
def test_what_is_refused_says_where_and_what_was_expected(text, sentence):
    with pytest.raises(SelectorError) as error:
        parse(text)
    assert str(error.value) == sentence


def test_depth_and_length_are_bounded():
    assert parse("(" * DEEPEST + "all()" + ")" * DEEPEST).matches({})
    with pytest.raises(SelectorError, match="nested parentheses"):
        parse("(" * (DEEPEST + 1) + "all()" + ")" * (DEEPEST + 1))
    with pytest.raises(SelectorError, match="at most 4096"):
        parse(" " * (LONGEST + 1))
    assert not parse("!" * (LONGEST - 5) + "all()").matches({})
    long = " || ".join(["has(a)"] * 400)
    assert parse(long).matches({"a": ""})


PIECES = st.sampled_from(
    [
        "a",
        "b",
        "'x'",
        '"y"',
        "==",
        "!=",
        "in",
        "not",
        "{",
        "}",
        ",",
        "(",
        ")",
        "!",
        "&&",
        "||",
        "has(a)",
        "all()",
        "global()",
        "contains",
        "starts",
        "with",
        "has(",
        "'",
        '"',
        "=",
        "&",
        "\n",
    ]
)


@given(st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=30).map(" ".join)))
def test_the_parser_raises_its_own_error_or_nothing(text):
    try:
        selector = parse(text)
    except SelectorError:
        return
    assert selector.matches({}) in (True, False)
    if text.strip(" \t"):
        assert parse(f"!({text})").matches({}) is not selector.matches({})


LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["x", "y", "xy", ""]))
VALUES = st.sampled_from(["x", "y", "xy", ""])


@st.composite
def expressions(draw, depth=3):
    """A selector's text beside the same question asked in Python."""
    kind = draw(st.sampled_from(["==", "!=", "in", "has", "contains"] + (["&&", "||", "!"] if depth else [])))
    if kind in ("&&", "||"):
        (left, ask_left), (right, ask_right) = draw(expressions(depth - 1)), draw(expressions(depth - 1))
        both = all if kind == "&&" else any
        return f"({left} {kind} {right})", lambda labels: both((ask_left(labels), ask_right(labels)))
    if kind == "!":
        text, ask = draw(expressions(depth - 1))
        return f"!{text}", lambda labels: not ask(labels)
    label, value, other = draw(st.sampled_from("abc")), draw(VALUES), draw(VALUES)
    return {
        "==": (f"{label} == '{value}'", lambda labels: labels.get(label) == value),
        "!=": (f'{label} != "{value}"', lambda labels: labels.get(label) != value),
        "in": (f"{label} in {{'{value}', '{other}'}}", lambda labels: labels.get(label) in (value, other)),
        "has": (f"has({label})", lambda labels: label in labels),
        "contains": (f"{label} contains '{value}'", lambda labels: value in labels.get(label, "\0")),
    }[kind]


@given(expressions(), LABELS)
def test_it_answers_as_the_same_question_in_python(expression, labels):
    text, ask = expression
    if "contains ''" in text:
        return  # Python finds '' in a missing label's stand-in; the selector does not
    assert parse(text).matches(labels) == ask(labels)
