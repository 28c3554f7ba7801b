"""Evaluation: the six benchmarks as published, and the graders that nobody can talk into a wrong verdict.

In reading order: `rows` (one official row), `benchmarks` (files to tasks), `graders` (row and answer to verdict;
`grade_text`, `grade_math` and `p3` hold the rules), `sandbox` (where model-written Python runs, with
`interpreter` and `seccomp`). Nothing here needs torch or Ray, and no grader sees which model answered.
"""
