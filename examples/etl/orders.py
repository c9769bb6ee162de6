"""What SQL does not do well: reading a CSV file, and telling good lines from bad ones."""

import csv
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import knhk


def extract(file: str, batch: int = 100) -> dict[str, Any]:
    """The good lines in batches, ready to be loaded, and the bad ones with what is wrong with them."""
    if not Path(file).is_file():
        raise knhk.ActionFailed(f"there is no {file}", code="ETL-FILE")
    good: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    with Path(file).open(newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), 2):
            try:
                good.append(_clean(row))
            except InvalidOperation:
                bad.append({"line": number, "order": row["order"], "why": f"{row['amount']} is no amount"})
            except ValueError as error:
                bad.append({"line": number, "order": row["order"], "why": str(error)})
    batches = [good[start : start + batch] for start in range(0, len(good), batch)]
    return {"read": len(good) + len(bad), "good": len(good), "batches": batches, "bad": bad}


def _clean(row: dict[str, str]) -> dict[str, Any]:
    cents = int(Decimal(row["amount"]) * 100)
    if cents <= 0:
        raise ValueError(f"the amount is {row['amount']}")
    return {
        "id": row["order"],
        "day": date.fromisoformat(row["day"]).isoformat(),
        "customer": row["customer"].strip(),
        "country": row["country"].upper(),
        "cents": cents,
    }


def report_bad_lines(file: str, bad: list[dict[str, Any]]) -> str:
    """Write the bad lines to a file; writing it twice gives the same file."""
    lines = [f"line {one['line']}: {one['order']}: {one['why']}\n" for one in bad]
    Path(file).write_text("".join(lines))
    return file
