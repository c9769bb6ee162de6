"""All actions of a process: the built-in ones within the limits of the configuration, packages' and modules'."""

from typing import Final

from knhk.actions import file, http, notify, python, s3, shell, sql
from knhk.actions.blob_access import AreaAccess, provide
from knhk.actions.registry import Registry
from knhk.config import Actions
from knhk.ports.blobs import Blobs, NoBlobs

_NONE: Final = NoBlobs("this process has no server's blob area")


def catalogue(settings: Actions, blobs: Blobs = _NONE) -> Registry:
    """The registry of a process with this configuration; its actions write and read large payloads in `blobs`.

    Raises:
        InvalidConfiguration: a module cannot be imported or has no action, or two actions have the same name.
    """
    http.SHARED.configure(settings, blobs)
    provide(AreaAccess(blobs))
    registry = Registry.load(settings.modules)
    outside = (
        shell.action(settings.shell, blobs),
        python.action(settings.python, blobs),
        sql.action(settings.sql, blobs),
        file.action(settings.file, blobs),
        s3.action(settings.s3, blobs),
        notify.action(settings.notify),
    )
    for action in outside:
        registry.register(action)
    return registry
