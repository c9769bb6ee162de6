"""Reads the customers who owe something."""

import csv
from decimal import Decimal
from typing import Any


def who_owe(file: str) -> list[dict[str, Any]]:
    """Each with name, address and what is owed, in cents."""
    with open(file, newline="") as lines:
        return [
            {"customer": row["customer"], "email": row["email"], "cents": int(Decimal(row["owes"]) * 100)}
            for row in csv.DictReader(lines)
        ]
