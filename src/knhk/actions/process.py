"""`process`: pass on what the params say; the work is done by the expressions in them."""

from typing import Final

from knhk.actions.registry import Action, Invocation, Outcome, Succeeded
from knhk.domain.plan import ActionTraits

NAME: Final = "process"


def run(invocation: Invocation) -> Outcome:
    """Succeeds with `params.output` if there is one, else with all params."""
    params = invocation.params
    if isinstance(params, dict) and "output" in params:
        return Succeeded(params["output"])
    return Succeeded(params)


ACTION: Final = Action(
    ActionTraits(NAME, pure=True, guarantee="exactly-once", reads_dependencies=False),
    "inline",
    run,
    __name__,
    about="passes on its params",
)
