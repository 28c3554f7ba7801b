"""Autoscaling by what plans will need.

plan_ahead      replicas for a forecast: arithmetic, also for the simulator
demand_board    the actor on which routers write their forecasts and the policy reads them
serve_policy    the policy that Ray Serve's controller runs
"""
