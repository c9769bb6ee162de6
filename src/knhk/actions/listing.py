"""Actions as people see them: what each does, what it promises, and what it takes."""

from typing import Any

from knhk.actions.registry import Action, Registry


def listed(registry: Registry) -> list[dict[str, Any]]:
    """All actions by name, without their schemas."""
    return [_summary(action) for action in sorted(registry, key=lambda action: action.name)]


def described(registry: Registry, name: str) -> dict[str, Any]:
    """One action with its schemas. Raises NotFound."""
    action = registry.get(name)
    traits = action.traits
    return {
        **_summary(action),
        "params_schema": traits.params_schema,
        "output_schema": traits.output_schema,
        "literal_params": list(traits.literal),
    }


def _summary(action: Action) -> dict[str, Any]:
    traits = action.traits
    return {
        "name": traits.name,
        "about": action.about,
        "guarantee": traits.guarantee,
        "version": traits.version,
        "pure": traits.pure,
        "runs_in": _PLACES[action.mode],
        "allowed": not traits.disabled,
        "reason": traits.disabled,
        "source": action.source,
    }


_PLACES = {"inline": "event loop", "async": "event loop", "thread": "thread"}
