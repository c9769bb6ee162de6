"""The report of an incident, as a file."""

from pathlib import Path

import knhk


@knhk.action("incident.report")
def report(number: str, service: str, lines: list[str], context: knhk.ActionContext) -> str:
    """Write the report, the same however often it is written. Gives its path."""
    page = Path("reports") / f"{number}.md"
    page.parent.mkdir(exist_ok=True)
    text = [f"# Incident {number}: {service}", "", *[f"- {line}" for line in lines], "", f"Run: {context.workflow_id}"]
    page.write_text("\n".join([*text, ""]))
    return str(page)
