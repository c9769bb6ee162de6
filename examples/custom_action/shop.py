"""Two actions. Their annotations become the schemas against which descriptors and results are checked."""

from dataclasses import dataclass

import knhk

PRICES = {"tea": 450, "cup": 1200}


@dataclass
class Item:
    """What a customer wants."""

    sku: str
    count: int = 1


@knhk.action("shop.reserve", pure=True)
def reserve(items: list[Item]) -> dict[str, int]:
    """What the items cost. A pure action has no effect outside, so it may safely be repeated."""
    unknown = [item.sku for item in items if item.sku not in PRICES]
    if unknown:
        raise knhk.ActionFailed(f"we do not sell {', '.join(unknown)}", code="SHOP-UNKNOWN")
    return {"cents": sum(PRICES[item.sku] * item.count for item in items)}


@knhk.action("shop.charge")
async def charge(order: str, cents: int, context: knhk.ActionContext) -> dict[str, str]:
    """Pretends to charge. A real one hands the key to the bank, so that a second call has no effect."""
    if cents <= 0:
        raise knhk.ActionFailed("there is nothing to pay", code="SHOP-AMOUNT")
    return {"payment": f"{order} paid {cents / 100:.2f} under {context.idempotency_key}"}
