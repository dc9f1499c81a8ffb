"""The table of programs that read an export is that of the tests."""

import readers
from pages import ROOT


def test_the_page_has_the_table_of_the_tests():
    assert readers.table() in (ROOT / "docs" / "publishing.md").read_text()


def test_each_row_is_shown_by_a_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in readers.READERS if f'READERS["{name}"]' not in tests] == []
