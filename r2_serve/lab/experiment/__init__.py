"""`r2-serve experiment`: the same load on variants of one Serve config, over seeds; one table of what each reached and took.

Every cell (workload, variant, seed) is an `r2-serve load` of its own, on a cluster of its own, so that it can be run again by
hand and none finds what another left. Resumable: a finished cell is kept. Not a search: which variants, is the user's to say.
Reading order: `config`, `variants`, `cells`, `clusters`, `runner`, `results`, `plots`, `page`, `cli`.
"""
