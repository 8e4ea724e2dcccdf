"""Print the tests that were skipped wherever they were collected: skipped_everywhere.py REPORT.xml … (JUnit).

Exit status 1 if there is one: a test that runs nowhere proves nothing.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree


def outcomes(report: str) -> dict[str, str]:
    """Return why each test of a report was skipped, by its name; empty: it ran."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        skipped = case.find("skipped")
        found[name] = "" if skipped is None else str(skipped.get("message"))
    return found


def main(reports: list[str]) -> int:
    """Print them, and return the exit status."""
    reasons: dict[str, list[str]] = {}
    for report in reports:
        for name, reason in outcomes(report).items():
            reasons.setdefault(name, []).append(reason)
    nowhere = {name: said[0] for name, said in sorted(reasons.items()) if all(said)}
    for name, reason in nowhere.items():
        print(f"{name}: {reason}")
    print(f"{len(reasons)} tests in {len(reports)} reports; {len(nowhere)} of them ran nowhere")
    return 1 if nowhere or not reasons else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
