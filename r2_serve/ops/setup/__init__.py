"""The first minutes of an operator: a first config (`r2-serve init`) and what the machine has (`doctor`)."""
