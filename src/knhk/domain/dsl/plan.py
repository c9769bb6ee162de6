"""What the plan of a Serverless Workflow holds for each of its tasks."""

from typing import Final

import msgspec

from knhk.domain.dsl.task import Do, Document, For, Fork, Task, Try

NAME: Final = "serverless"
"""The action that performs tasks."""


class Definition(msgspec.Struct, frozen=True):
    """A task and the document that it is of."""

    document: Document
    task: Task


def inner_tasks(task: Task) -> tuple[Task, ...]:
    """The tasks inside a task, in the order in which its blocks are numbered."""
    match task.body:
        case Do(tasks=tasks) | For(tasks=tasks) | Fork(branches=tasks):
            return tasks
        case Try(tasks=tasks, handler=handler):
            return (*tasks, *handler)
    return ()


def root_task(document: Document) -> Task:
    """The whole workflow as one task."""
    return Task("do", "", Do(document.tasks), input=document.input, output=document.output)
