"""Autoscaling by what plans will need.

plan_ahead      the replicas that a forecast needs: arithmetic, which the simulator uses too
demand_board    the actor on which routers write their forecasts and the policy reads them
serve_policy    the policy that Ray Serve's controller runs
"""
