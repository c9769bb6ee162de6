"""Actions of users who are careless with secrets."""

import logging
import os

import knhk


@knhk.action("leaky.fail")
async def fail(token: str) -> None:
    """Fails with secrets of the environment, of its parameters and of a URL in its message."""
    raise RuntimeError(
        f"login failed: {os.environ['SHOP_API_TOKEN']}; token={token}; https://shop:{os.environ['SHOP_DB_PASSWORD']}@db/x"
    )


@knhk.action("leaky.log")
async def log(password: str) -> None:
    """Writes secrets to the log."""
    logging.getLogger("shop").warning(
        "connecting with password=%s, Authorization: Bearer %s, postgresql://shop:%s@db/shop; the pager's key is %s, "
        "and the hook %s",
        password,
        os.environ["SHOP_API_TOKEN"],
        os.environ["SHOP_DB_PASSWORD"],
        os.environ["PAGERDUTY_KEY"],
        os.environ["SLACK_WEBHOOK"],
    )
