"""`r2-serve runs`: one place for the results of every kind of run.

Reading order: `record` (what is said of a run), `kinds` (how a directory of each kind is read), `finding`
(the walk through a directory of runs), `listing` (filters, order, the printed table), `tables` (every table
of a run, as CSV and LaTeX), `comparing` (two runs), `serving` (the pages on loopback), `cli`.

Nothing here writes into a run, and no directory is trusted: files may be broken, half written or foreign.
"""
