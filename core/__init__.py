"""The ground floor: what every room stands on, small and without opinions.

Start with `core.spec` (what a served model is), then `core.settings` (what an operator may choose),
`core.errors` (what can go wrong), `core.schema` and `core.ledger` (where facts are kept).
Nothing here imports another room.
"""
