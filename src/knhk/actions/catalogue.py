"""All actions of a process: the built-in ones within the limits of the configuration, packages' and modules'."""

from knhk.actions import http, python, shell, sql
from knhk.actions.registry import Registry
from knhk.config import Actions


def catalogue(settings: Actions) -> Registry:
    """The registry of a process with this configuration.

    Raises:
        InvalidConfiguration: a module cannot be imported or has no action, or two actions have the same name.
    """
    http.SHARED.configure(settings)
    registry = Registry.load(settings.modules)
    for action in (shell.action(settings.shell), python.action(settings.python), sql.action(settings.sql)):
        registry.register(action)
    return registry
