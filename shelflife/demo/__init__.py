"""The demo: two years of real invoices through the whole loop, on an accelerated clock.

Nothing here is a second implementation: versions are registered, served, checked, retrained, gated,
promoted and told of by the code of the live service. What the demo adds is the story
(`demo.story`), a client that replays it over HTTP (`demo.replay`), a receiver that shows what
on-call would have read (`demo.receiver`) and a summary (`demo.summary`). Start with `demo.run`.
"""
