"""Training: makes the models that `r2_serve` serves. It imports `r2_serve`, never the other way round."""
