"""A mail provider that is a directory."""

from pathlib import Path

import knhk


@knhk.action("mail.deliver")
def deliver(to: str, text: str, context: knhk.ActionContext) -> str:
    """Put a message into `outbox`, once for each idempotency key, as a provider does that knows such keys."""
    message = Path("outbox") / f"{context.idempotency_key.replace('/', '-')}.eml"
    message.parent.mkdir(exist_ok=True)
    if not message.exists():
        draft = message.with_suffix(".draft")
        draft.write_text(f"To: {to}\nSubject: a reminder\n\n{text}\n")
        draft.replace(message)
    return message.name
