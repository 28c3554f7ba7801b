"""Outcomes: recorded replies of models, what policies would have made of them, and gates fitted on them.

In reading order: `book` (what is recorded), `importing` (files of others), `answers` and `grading` (equal
answers, right answers), `table` and `features` (a book as arrays), `posterior` (how probably the leading
answer is right), `gate` (when to stop asking), `search` and `fitting` (which gate), `goals` (what a fit is to
reach), `baselines` and `replay` (every row on the same tasks), `figures`, `page` and `plot` (the report), and
`cli`.

No model is called here.
"""
