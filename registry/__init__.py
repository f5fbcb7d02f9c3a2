"""Model versions and where they are kept. MLflow is known here and nowhere else.

Start with `registry.versions` (`Registry`: versions, their files and aliases), then
`registry.promotion` (how `champion` moves) and `registry.loading` (how a model file becomes an
estimator without running what nobody allowed; it needs no MLflow). `registry.trusted` holds the
allow-list, `registry.artifacts` moves files, `registry.store` connects to MLflow.
"""
