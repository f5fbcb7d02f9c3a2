"""The inference log: what was asked, what was answered, what turned out true.

Start with `monitor.log.records` (a row, a label, the protocol), then `monitor.log.log`.
"""
