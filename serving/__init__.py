"""Answers: the champion behind the Open Inference Protocol, swapped without dropping a request.

A prediction's way: `serving.app` (HTTP) → `serving.codec` (columns, checked) → `serving.batching`
→ a backend (`serving.backend`) → `serving.traffic` (the log). `serving.swap` watches the pointers
that `serving.deploy`, in another process, writes from MLflow's `champion`; `serving.store` is the
folder they share. A worker imports neither mlflow nor evidently.
"""
