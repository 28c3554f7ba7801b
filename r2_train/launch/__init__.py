"""The places where a training stage can run.

Reading order: `stage_run` (what a stage is and what it is given), `launch` (in this process or on a cluster),
`ray_stage` (on a Ray cluster), `checkpoints` and `deepspeed_worker` (what runs on each worker there), `zero`
(DeepSpeed's configurations).
"""
