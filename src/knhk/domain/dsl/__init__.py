"""The CNCF Serverless Workflow DSL 1.0 as a second language for workflows: read here, compiled to the same Plan.

https://github.com/serverlessworkflow/specification; docs/serverless-workflow.md says what of it there is.
"""
