"""`make ladder`: what allocation buys on everyday problems, with nine workers of different skills.

Reading order: `replies` (every worker's reply to every prompt, asked once), `policies` (which workers a step
is given to), `tuning` (pairs and thresholds of the baselines, on development problems), `router` (plans and
allocations of a trained pair), `study` (the rows and their summary), `changes` (other pools and sizes), `run`
(all of it, and the tables).

It runs the shipped checkpoints through the product's own dialect, engines and prices, but without the server:
a reply is a function of model and prompt, so one set of replies answers every policy.
"""
