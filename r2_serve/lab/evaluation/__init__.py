"""Evaluation: official benchmarks under many ways of answering, graded, with accuracy and cost compared.

In reading order: `benchmarks` (files to tasks; `r2_serve.grading` has the rows and the graders), `asker` (a
router in this process, or an endpoint), `desk` (one task, one ledger), `policies` (what is compared;
`judging` has its prompts), `rows` and `manifest` (what a run directory holds), `runner` (`ray_data` for
clusters), `report/` (figures, cells, table, plots, page), and `session` and `cli`, which put all this
together. `export` writes tasks for other tools.

Nothing here needs torch, only `ray_data` needs Ray, and no grader sees which model answered.
"""
