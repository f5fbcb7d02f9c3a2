"""The HTTP API beside inference: rows and events in, state out, requests for action.

    edge       errors as answers, bodies read within bounds
    control    models, incidents, runs, commands, health, metrics
    ingest     predictions and labels from elsewhere ─► jsonrows · arrowrows ─► rows ─► the log
    kserve     CloudEvents of KServe's inference logger ─► events ─► pairs ─► payloads ─► rows
    openapi    the document of all of it

It runs in the serving process and imports nothing heavy; pyarrow only when Arrow comes in.
"""
