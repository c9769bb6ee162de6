"""Tasks of the Serverless Workflow DSL as an action: what each kind of task does, and how data flow through it.

Expressions are jq, evaluated in other processes (knhk.actions.jq), so everything here is async. A task that has tasks
inside answers `Enter` and is called again when they are done; the engine keeps the rest durable.
"""
