"""The built-in actions. The entry point `builtin` of the group `knhk.actions` names this module."""

from knhk.actions.fail import ACTION as FAIL
from knhk.actions.http import ACTION as HTTP
from knhk.actions.process import ACTION as PROCESS
from knhk.actions.serverless.action import ACTION as SERVERLESS
from knhk.actions.validate import ACTION as VALIDATE
from knhk.actions.wait import ACTION as WAIT
from knhk.actions.wait_for import APPROVAL_ACTION as APPROVAL
from knhk.actions.wait_for import WAIT_FOR_ACTION as WAIT_FOR
from knhk.actions.workflow import ACTION as WORKFLOW

__all__ = ["APPROVAL", "FAIL", "HTTP", "PROCESS", "SERVERLESS", "VALIDATE", "WAIT", "WAIT_FOR", "WORKFLOW"]
