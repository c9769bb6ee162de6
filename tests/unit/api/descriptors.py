"""Descriptors that the tests of the API submit."""

HEAD = "apiVersion: knhk/v1\nkind: Workflow\n"

SUM = f"""{HEAD}metadata: {{name: sum, department: maths}}
spec:
  inputs:
    left: {{type: integer, default: 1}}
    right: {{type: integer, default: 2}}
  steps:
    - {{name: add, action: process, params: {{output: "${{{{ inputs.left + inputs.right }}}}"}}}}
    - {{name: show, action: process, depends_on: [add], params: {{output: "${{{{ steps.add.output }}}}"}}}}
  outputs: {{sum: "${{{{ steps.show.output }}}}"}}
"""
NAPS = f"""{HEAD}metadata: {{name: naps, department: sleep}}
spec:
  steps:
    - {{name: nap, action: wait, params: {{duration: 60s}}}}
    - {{name: after, action: process, depends_on: [nap]}}
"""
FAILS = f"""{HEAD}metadata: {{name: fails}}
spec:
  steps:
    - {{name: good, action: process, params: {{a: 1}}}}
    - {{name: bad, action: fail, depends_on: [good], params: {{message: not today}}}}
"""
