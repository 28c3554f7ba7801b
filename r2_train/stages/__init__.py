"""The stages of training.

Reading order: `tasks` (which tasks may be trained on), `collect` and `search` (plans and allocations that
work; `rows` lets both go on after a stop), `examples` (what a module is trained on), `sft`, `rewards` and
`grpo` (how it is trained; `model_files` and `run_log` serve both), `measure` (what a router achieves),
`alternate` (one module after the other), `curves` (the picture).
"""
