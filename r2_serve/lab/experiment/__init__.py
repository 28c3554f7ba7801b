"""`r2-serve experiment`: the same load on variants of one Serve config, over seeds, and one table of the
results.

Every cell (workload, variant, seed) is an `r2-serve load` of its own on its own cluster, so that it can be
repeated by hand and none is affected by another. An experiment is resumable: a finished cell is kept. It is
not a search: the user chooses the variants. Reading order: `config`, `variants`, `cells`, `clusters`,
`runner`, `results`, `report`, `plots`, `session`, `cli`.
"""
