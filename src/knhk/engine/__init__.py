"""The write path, files in the order in which data flow.

    admission -> committer -> scheduler -> executor -> committer -> projector

`control` is the facade that faces call; `service` builds, starts, drains and stops all of it.
"""
