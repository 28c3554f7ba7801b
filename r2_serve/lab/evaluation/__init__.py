"""Evaluation: the six benchmarks as published, and the graders that nobody can talk into a wrong verdict.

In reading order: `rows` (one official row), `benchmarks` (files to tasks), `graders` (row and answer to
verdict; `grade_text`, `grade_math` and `p3` hold the rules), `sandbox` (where model-written Python runs, with
`interpreter` and `seccomp`). Then how answers are come by: `asker` (in process or over HTTP), `desk` (one
task, one ledger), `policies` (what is compared; `judging` holds its prompts), `runner` (with `manifest` and
`rows`; `ray_data` for clusters), `report` (`report_table`, `plots`, `page`), and `session` and `cli`, which
put all this together.

Nothing here needs torch, only `ray_data` needs Ray, and no grader sees which model answered.
"""
