"""What happened to the model: the inference log, what it means, and who is told.

Start with `monitor.results` (what a check says), then `monitor.check` (how one is made).
`monitor.measure` is pure: functions of their arguments, no clock, no I/O. `monitor.log` keeps what
was asked, answered and turned out true; `monitor.alert` turns findings into incidents and messages.
"""
