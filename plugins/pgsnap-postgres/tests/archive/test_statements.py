"""statements: what pg_dump writes is split where psql would split it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgsnap_postgres.archive.statements import quote, split_statements, tokens, unquote


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A; B;\nC", ["A", "B", "C"]),
        ("-- a ; comment\nA 'x;y';", ["A 'x;y'"]),
        ("A 'it''s; one';B", ["A 'it''s; one'", "B"]),
        (r"A E'it''s \\; \' one';B", [r"A E'it''s \\; \' one'", "B"]),
        (r"A 'ends in a backslash \';B", [r"A 'ends in a backslash \'", "B"]),
        (r"TABLE'x\';B", [r"TABLE'x\'", "B"]),
        ('A "odd;""name";B', ['A "odd;""name"', "B"]),
        ("A $x$ ; $y$ ; $x$;B", ["A $x$ ; $y$ ; $x$", "B"]),
        ("\\restrict abc\n\nA;\n\\unrestrict abc\n", ["A"]),
        ("/* ; */ A;", ["A"]),
        ("", []),
        (";;", []),
    ],
)
def test_statements_end_at_semicolons_outside_of_quotes(text: str, expected: list[str]) -> None:
    assert expected == split_statements(text)


@pytest.mark.parametrize("text", ["A 'open", 'A "open', "A E'open\\'"])
def test_an_open_quote_is_refused_without_showing_the_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"^the script has a quote that is not closed$"):
        split_statements(text)


@given(st.text())
def test_tokens_lose_nothing(text: str) -> None:
    assert text == "".join(piece for _, piece in tokens(text))


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_quoted_names_and_literals_survive(names: list[str]) -> None:
    """Whatever a name is, it is read back, and does not end its statement."""
    statements = [f"COMMENT ON ROLE {quote(name)} IS '" + name.replace("'", "''") + "'" for name in names]
    assert statements == split_statements(";\n".join(statements))
    assert names == [unquote(quote(name)) for name in names]
