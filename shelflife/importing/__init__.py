"""`shelflife import`: predictions and labels from files and queries, once, however often it is run.

Start with `job` (the loop that can be killed anywhere); `mapping` says which column is what,
`sources` reads batches, `rows` turns them into rows of the log.
"""
