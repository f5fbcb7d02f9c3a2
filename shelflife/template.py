"""The commented settings file that `shelflife init` writes."""

from __future__ import annotations

TEMPLATE = """\
# shelflife settings. Every key is optional; what is commented out shows its default.
# Durations: 90s, 30m, 12h, 7d, 4w. Secrets never stand here: name env:VARIABLE or file:/path.

# home: .shelflife            # where everything is kept, relative to this file
# ledger: ""                  # SQLAlchemy URL; SQLite in `home` when empty
#                             # postgresql+psycopg://user@host/shelflife for several machines
# segments: ""                # where sealed rows lie: a folder or s3://bucket/prefix; `home` when
#                             # empty. Credentials come from the environment.
# segments_options: {}        # for fsspec, such as {endpoint_url: "http://minio:9000"}
# environment: ""             # named in messages: staging, production

# mlflow:
#   tracking_uri: ""          # SQLite in `home` when empty
#   artifacts: ""             # where new artifacts go; a folder in `home` when empty
#   ui: ""                    # address of an MLflow UI that already runs; started here when empty
#   port: 5000
#   poll_every: 2s            # an alias moved in the MLflow UI is obeyed within this time
#   webhook_secret: ""        # env:NAME of the secret of MLflow's webhooks, which hasten a poll

# serving:
#   host: 127.0.0.1
#   port: 8080
#   max_body_mb: 8
#   log_queue_rows: 20000     # rows waiting to be logged; above it they are shed and counted
#   log_wait: 1s              # longest an answer waits for its row to be committed
#   max_batch: 256            # most rows predicted together
#   threads: 1                # of one prediction
#   workers: 1                # processes that answer on the one port
#   grpc_port: null           # of the gRPC service (`shelflife[grpc]`); none when not set
#   queue_rows: 10000         # rows that may wait for one model; beyond it: 429
#   answer_within: 30s        # longest a request may take, unless it says so itself
#   load_within: 10s          # longest a request waits for its model to be loaded again
#   memory_mb: 0              # of models in a worker; those unused longest make room; 0: no limit
#   inline: 2ms               # shorter predictions are made without a thread
#   log_process: true         # a process beside each worker commits its rows: faster, 22 MB
#   backend: auto             # measured; or native, onnx, torch, triton, ray (docs/backends.md)
#   profile: latency          # what is best: latency (p99 of one row) or throughput (rows a second)
#   tolerance: 0.0001         # how far a converted model may be from the estimator's own answers
#   proof_rows: 1000          # fewest rows of the baseline that prove it
#   choose_within: 60s        # longest that building and measuring may take
#   device: auto              # cpu or cuda
#   triton:
#     url: ""                 # gRPC address of a Triton Inference Server: host:8001
#     repository: ""          # its model repository, a folder shared with this machine
#     backend: python         # what runs inside: python or onnxruntime
#     load_within: 60s
#   ray:
#     address: ""             # auto, ray://host:10001 or local
#     replicas: 1
#     cpus: 1                 # processors each replica reserves
#     gpus: 0                 # GPUs, or a fraction of one
#     multiplex: 0            # models that share one set of replicas

# ingest:                     # predictions and labels from elsewhere, /api/v1
#   max_body_mb: 8            # before and after decompression
#   max_rows: 20000           # of one request
#   future: 10m               # how far ahead of our clock an event time may be
#   pair_within: 1h           # how long half a CloudEvents pair waits for the other
#   read_within: 30s          # how long a caller may take to send a body

# dashboard:
#   host: 127.0.0.1
#   port: 8501
#   url: ""                   # where people reach it, for links in messages; http://host:port
#   upload_mb: 50             # largest history that may be uploaded for a backtest

# access:                     # who may see and do what; docs/access.md
#   enabled: false            # on: unknown identities see nothing
#   viewers: []               # names as the identity provider has them, group:NAME, or "*"
#   operators: []             # also check, retrain, approve, reject, roll back, silence
#   admins: []                # also promote without the gate
#   oidc: false               # the dashboard signs people in with OpenID Connect
#   groups_claim: groups
#   proxy_user: ""            # header in which a proxy names who is signed in
#   proxy_groups: ""          # ... and their groups
#   proxy_secret: ""          # env:NAME or file:/path of what it sends as X-Shelflife-Proxy
#   requests_per_minute: 6000 # of one identity; tokens may have a rate of their own

# receivers:                  # who is told of incidents; `shelflife receivers test NAME`
#   - name: on-call
#     type: webhook           # signed as Standard Webhooks 1.0 says; or slack, pagerduty,
#                             # alertmanager, email
#     url: env:ONCALL_WEBHOOK_URL  # alertmanager: its root; email: smtp://host or smtps://host
#     secret: env:ONCALL_WEBHOOK_SECRET  # pagerduty: routing key; email: user:password
#     severities: [page, ticket]
#     timeout: 15s
#     allow: []               # inner networks it may lie in, such as 10.1.0.0/16; plain http too
#     ca: ""                  # PEM file of authorities; Mozilla's when empty
#     sender: ""              # email: from
#     to: []                  # email: addresses
#     refresh_every: 1m       # alertmanager: open incidents are sent again, or they expire

# heartbeat:                  # somebody else misses it when the monitor stops
#   url: ""                   # asked (GET) while the monitor works; env:NAME, file:/path
#   receiver: ""              # gets a monitor.heartbeat message while the monitor works
#   every: 1m
#   allow: []                 # as for receivers
#   ca: ""

# alerts:                     # who hears of what, and when (docs/oncall.md)
#   opens: {}                 # by cause, such as {broken_feed: 2/3}: two of three checks open
#   clears: 2                 # clear checks in a row that resolve; more after every relapse
#   memory: 24                # checks within which ups and downs count as flapping
#   route:                    # as in Alertmanager: the first child that matches takes it
#     match: []               # such as ['severity="page"', 'owner=~"crm|sales"']
#     receivers: []           # all when empty
#     group_by: [model, cause]  # incidents alike in these share a message
#     group_wait: 0s          # how long the first one waits for others
#     group_interval: 0s      # least time between two messages of a group
#     repeat_interval: 7d     # the model's repeat_every when not set
#     escalate_after: 1h      # pages nobody acknowledged go to escalate_to, too
#     escalate_to: []
#     continue: false         # let the siblings after it match as well
#     routes: []              # children of the same keys
#   maintenance: []           # such as {reason: backups, days: [sun], start: "02:00", end: "04:00"}
#   mutes: []                 # such as {source: ['cause="no_data"'], target: ['cause="stale"']}
#   runbooks: ""              # URL to which /<cause> is appended; shelflife's own when empty
#   templates: {}             # own words, by cause or for finding, resolved, step, group

defaults:                     # for every model, unless its own section says otherwise
  owner: ""                   # who answers for the model; named in every message
  # runbook: ""               # URL of what to do; linked in every message
  check_every: 1h
  window: 7d                  # event time a check looks back over
  # min_rows: 50              # fewer rows or labels are `insufficient_data`, never an alarm
  # metric: brier             # brier, log_loss (classification); mae, rmse (regression)
  tolerance: 0.1              # how much worse than expected, relative to the baseline
  # threshold: 0.5            # probability from which a binary answer counts as positive
  # quantile: 0.5             # that a regression predicts, for its pinball loss
  # segments: []              # input columns whose levels are scored by themselves
  false_alarms_per_quarter: 1 # drift alarms you tolerate when nothing drifts
  # classifier_every: 1d      # a classifier tries to tell new rows from the baseline's; never
  # text: []                  # columns of free text, watched by length, non-letters, unknown words
  # evidently: []             # metrics of Evidently, such as {metric: MeanValue, column: age}
  # max_age: 180d             # older models are stale even if nothing else is wrong
  # label_delay: 30d          # how late labels are; measured when not set
  # score_width: 1d           # width of the windows whose score is corrected as labels arrive
  # no_data_after: 2h         # silence longer than this is a page; two windows when not set
  # late_data_after: 7d       # rows that arrive later than this are late; the window when not set
  # no_labels_after: 14d      # silence of labels; two windows and label_delay when not set
  # sample_rate: 1.0          # share of predictions that are logged
  # retention: 400d           # older rows and their labels are deleted; kept for ever when not set
  # privacy:                  # what may not be logged is not monitored either
  #   allow: []               # only these input columns; all when empty
  #   deny: []                # never logged
  #   hash: []                # logged as a keyed hash
  #   key: ""                 # env:NAME or file:/path of the hash's secret
  # durability: strict        # strict: answered after the row is committed; relaxed: at once
  # commit_within: 10ms        # relaxed: what a crash can lose
  # latency_budget: 50ms      # of waiting and predicting together; batches are kept that small
  # weight: 1                 # share of processor and memory under load
  # pinned: false             # never taken out of memory for another model
  # trust_pickle: false       # true runs any code that a pickled model contains
  # backend: auto             # the interpreter of this model; serving's when not set
  # profile: latency          # what its interpreter is chosen for; serving's when not set
  # repeat_every: 7d          # an incident that lasts is told again, unless acknowledged
  # receivers: []             # names of those who are told; all when empty
  # labels: {}                # of its incidents, for routes and silences
  # quality:
  #   missing_points: 0.2     # rise of a missing share that breaks the feed
  #   unseen_share: 0.2       # share of never seen categories that does
  #   out_of_range_share: 0.5 # share of values beyond ten times the range that does
  retrain:
    mode: auto                # auto, approve (a person promotes) or never (only told)
    policy: default           # never, every:N, drift_share[:X], threshold[:X]
    cooldown: 7d
    # budget_per_quarter: 12
    # min_new_labels: 200
    # cost_of_run: 0.2        # of one training job, in expected losses of one check window
    # rows: 0                 # train on at most so many of the newest rows; 0: all
    # windows: [recent, all, since_change, blend]  # what competes; decay: older rows weigh less
    # recent_rows: 0          # rows of the window recent; 0: those of the first version
    # source: ""              # rows from elsewhere: a Parquet path, sql:env:NAME, module:function
    # source_query: ""        # SELECT for sql:env:NAME
    # source_environment: []  # variables a source function may see
    # trainer: ""             # package.module:function; empty: refit the champion's pipeline
    # search:                 # hyperparameters; off while the space is empty
    #   space: {}             # parameter: [values] or {low: 0.01, high: 0.3, log: true}
    #   engine: sklearn       # or optuna
    #   trials: 20
    #   timeout: 30m
    #   folds: 3              # in order of time
    #   seed: 0
    # time_limit: 1h
    # memory_limit_gb: 8
    # watch: 60d              # how long a new champion is compared with its predecessor
    # rollback_of_people: false  # let the watch take back what a person promoted, too
    # approval_expires: 30d   # how long a run waits for a person in mode approve
    # keep_runs: 30d          # work folders of finished runs, prepared versions nobody serves
    # rollout:                # between the gate and the callers; nothing by default
    #   shadow: 0s            # a copy of the requests for so long, or so many rows (5000)
    #   canary: 0             # then a share of the callers, 0 to 1
    #   canary_for: 1d        # for so long, or so many rows
    #   undecided: promote    # or refuse: at the end, when nothing is proven
    #   watch_in_shadow: false  # let the old champion answer a copy while it is compared
    #   shadow_challenger: true  # let what a person makes challenger answer a copy
    # gate:
    #   rule: ahead           # ahead (newer rows weigh more), superior or not_worse
    #   confidence: 0.9       # one-sided, of the interval and of every "clearly worse"
    #   min_rows: 200
    #   max_rows: 1000
    #   holdout_share: 0.15
    #   guardrails: []        # such as {metric: log_loss, max_worse: 0.02}
    #   segments: []          # input columns on no level of which it may be clearly worse
    #   segment_rows: 50      # held-out rows a segment needs to be judged
    #   min_train_share: 0.2  # of the champion's training rows
    #   max_latency_ratio: 3  # of the champion's p99
    #   latency_budget_ms: null
    #   report: true          # an Evidently report of both models, attached to the version
    #   champion_unavailable: ask  # or baseline: held against the labels' mean

# models:
#   churn:
#     owner: team-retention
#     label_delay: 30d
#     retrain: {mode: approve}
"""
