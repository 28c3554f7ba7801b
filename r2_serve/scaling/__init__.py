"""Autoscaling by what plans will need.

plan_ahead      the replicas that a forecast needs: arithmetic, which the simulator uses too
demand_board    the actor on which routers write their forecasts and the policy reads them
cold_starts     how long replicas took to start, in parts, by the lines of their logs
serve_policy    the policy that Ray Serve's controller runs
"""
