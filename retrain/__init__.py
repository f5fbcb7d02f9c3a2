"""When a model is retrained, on what, how, and whether the result is better.

Start with `retrain.policy` (when) and `retrain.run` (the resumable run); a run's parts are
`retrain.dataset` (on what), `retrain.trainer` (how) and `retrain.gate` (is it better), and
`retrain.watch` asks afterwards whether it was right. `policy`, `gate` and `watch.judge` are pure:
functions of their arguments, no clock, no I/O.
"""
