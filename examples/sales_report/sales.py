"""Reads the sales of a day, and writes its report."""

import csv
from decimal import Decimal
from pathlib import Path
from typing import Any

import knhk


def of_day(file: str, day: str) -> dict[str, Any]:
    """What was sold on a day, in cents by region; `day` may be a time, of which the date counts."""
    day = day[:10]
    regions: dict[str, int] = {}
    with Path(file).open(newline="") as lines:
        for row in csv.DictReader(lines):
            if row["day"] == day:
                cents = int(row["units"]) * int(Decimal(row["price"]) * 100)
                regions[row["region"]] = regions.get(row["region"], 0) + cents
    if not regions:
        raise knhk.ActionFailed(f"there are no sales of {day} in {file}", code="SALES-NONE")
    return {"day": day, "regions": regions, "cents": sum(regions.values())}


def write_report(directory: str, sales: dict[str, Any], before: int) -> str:
    """One page for people, the same however often it is written: first beside it, then in its place."""
    page = Path(directory) / f"{sales['day']}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"# Sales of {sales['day']}", "", "| region | total |", "|---|---|"]
    lines += [f"| {region} | {cents / 100:,.2f} |" for region, cents in sorted(sales["regions"].items())]
    lines += [f"| **all** | {sales['cents'] / 100:,.2f} |", "", f"The day before: {before / 100:,.2f}.", ""]
    draft = page.with_suffix(".draft")
    draft.write_text("\n".join(lines))
    draft.replace(page)
    return str(page)
