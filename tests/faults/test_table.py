"""docs/reliability.md says what the tests show."""

from __future__ import annotations

import table


def test_the_table_of_faults_is_up_to_date():
    assert table.PAGE.read_text(encoding="utf-8") == table.page(), (
        "run python tests/faults/table.py"
    )


def test_every_fault_has_a_case_and_an_outcome():
    found = table.faults()
    assert len(found) >= 40
    for case, outcome, test in found:
        assert case, test
        assert outcome, test
        assert "|" not in case + outcome, test
