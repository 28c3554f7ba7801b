"""The embedded models: tiny Qwen2 checkpoints, trained from random weights on one CPU core.

Reading order: `tiny_models` (a model, its training and its replies), `tiny_data` (what it is trained on),
`pool_execution` (many plans at once), `solve_rates` (which worker suffices for a step), `evaluate_pool` (the
router against single models), `chain_of_thought` (a baseline), `pretrain` (the recipes), `ship` (replaces the
embedded checkpoints).
"""
