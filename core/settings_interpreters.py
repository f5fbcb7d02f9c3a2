"""What an operator may choose about the interpreters that execute models."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from core.settings_retrain import Duration, Positive

BackendChoice = Literal["auto", "native", "onnx", "torch", "triton", "ray"]
Profile = Literal["latency", "throughput"]


class TritonSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Triton Inference Server that runs models for us."""

    url: str = ""
    """Its gRPC address, `host:8001`; without one the `triton` backend is not applicable. The server
    must run with `--model-control-mode=explicit`."""
    repository: str = ""
    """Its model repository, a folder that this machine and the server share."""
    backend: Literal["python", "onnxruntime"] = "python"
    """What executes inside Triton: `python` runs any model and needs shelflife in the server's
    Python; `onnxruntime` takes the converted graph."""
    load_within: Duration = "60s"
    """Longest a model may take to load there."""


class RaySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Ray cluster whose replicas run models for us."""

    address: str = ""
    """`auto`, `ray://host:10001`, or `local` for one of our own; without one the `ray` backend is
    not applicable."""
    replicas: Annotated[int, Meta(ge=1)] = 1
    """Replicas of each model."""
    cpus: Annotated[float, Meta(ge=0)] = 1.0
    """Processors each replica reserves."""
    gpus: Annotated[float, Meta(ge=0)] = 0.0
    """GPUs each replica reserves; a fraction lets several share one. Ray places by it and does not
    enforce it."""
    multiplex: Annotated[int, Meta(ge=0)] = 0
    """Models that share one set of replicas, each replica keeping so many in memory; 0 gives every
    version replicas of its own."""


class InterpreterSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which interpreter executes a model, and how it is chosen."""

    backend: BackendChoice = "auto"
    """`auto` measures every applicable one when a version is prepared; another name takes the best
    variant of that one, if it passes the same comparison."""
    profile: Profile = "latency"
    """What is best: `latency` the lowest p99 of one row within the model's budget, `throughput` the
    most rows per second."""
    tolerance: Positive = 0.0001
    """How far a converted model's answer may be from the estimator's: of a probability, or relative
    to the spread of a regression's predictions. A changed label is never tolerated."""
    proof_rows: Annotated[int, Meta(ge=1)] = 1000
    """Fewest rows of the baseline that a converted model is compared on; a version with fewer is
    served by its estimator."""
    choose_within: Duration = "60s"
    """Longest that building and measuring may take; what is not finished then is not chosen."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` measures a GPU where there is one; it is never chosen where it is slower."""
    triton: TritonSettings = field(default_factory=TritonSettings)
    ray: RaySettings = field(default_factory=RaySettings)
