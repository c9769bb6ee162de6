"""jq expressions, evaluated in processes of their own that see no environment and no files and can be killed."""

from knhk.actions.jq.pool import JqPool

__all__ = ["JqPool"]
