"""What steps with steps inside do when they begin and when their frame ends: one file for each construct.

`begin(body, scope)` says what a step that starts goes into, `end(body, frame, values)` what follows once that is done.
Both only read; composites.py makes events of what they answer. A construct is known by its node in the plan, its entry
in `BEGIN` and `END` there, and in `frame_folds` by how its frame is opened.
"""
