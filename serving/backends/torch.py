"""PyTorch, on a GPU or on the CPU: modules as they are, and tree ensembles as tensors.

Variants, each with `@cuda` behind it where there is a GPU:

    float64    trees as tensors, exact; preprocessing by `serving.steps`
    float32    the same in single precision; a module in its own
    kernel     trees by one fused kernel in the Triton language (GPU), in double precision
    float16    a module in half precision (GPU)
    bfloat16   a module in half precision (CPU)
    compiled   a module through torch.compile (GPU; slow to load, for the `throughput` profile)

On a GPU small batches are replayed as CUDA graphs (`serving.backends.cuda`): at those sizes the
launches cost more than the work.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import msgspec

from core.spec import ModelSpec
from serving import steps
from serving.backend import (
    Capabilities,
    Counting,
    Interpreter,
    NotApplicable,
    Subject,
)
from serving.backends import forest as forests
from serving.backends.graphs import module_of
from serving.backends.heads import (
    Order,
    order_of,
    read_interpreter,
    write_interpreter,
)

FOREST, MODULE, STEPS = "forest.npz", "module.pt2", "steps.json"


class Torch:
    """Modules and forests on PyTorch."""

    def capabilities(self) -> Capabilities:
        """See `Backend.capabilities`."""
        there = importlib.util.find_spec("torch") is not None
        return Capabilities(
            name="torch",
            devices=("cpu", "cuda"),
            variants=("float64", "float32", "kernel", "float16", "bfloat16", "compiled"),
            extra="torch",
            exact=False,
            missing="" if there else "install shelflife[torch]",
        )

    def assess(self, subject: Subject) -> tuple[str, ...]:
        """See `Backend.assess`."""
        _require()
        settings = subject.settings
        gpu = settings.device != "cpu" and _cuda()
        if settings.device == "cuda" and not gpu:
            raise NotApplicable("serving.device is cuda, and torch finds no GPU")
        if module_of(subject.estimator) is not None:
            on_gpu: tuple[str, ...] = ("float32@cuda", "float16@cuda")
            if settings.profile == "throughput":
                on_gpu += ("compiled@cuda",)
            on_cpu: tuple[str, ...] = ("float32", "bfloat16")
        else:
            _, last = steps.split(subject.estimator, subject.spec)
            order_of(last, subject.spec)
            forests.forest_of(last)
            on_gpu = ("float64@cuda", "kernel@cuda", "float32@cuda")
            on_cpu = ("float64", "float32")
        if settings.device == "cuda":
            return on_gpu
        return (*on_cpu, *(on_gpu if gpu else ()))

    def prepare(self, subject: Subject, variant: str, folder: Path) -> None:
        """See `Backend.prepare`."""
        _require()
        device = variant.partition("@")[2] or "cpu"
        module = module_of(subject.estimator)
        if module is not None:
            more = _export(module, subject, folder)
        else:
            program, last = steps.split(subject.estimator, subject.spec)
            forests.save(forests.forest_of(last), folder / FOREST)
            (folder / STEPS).write_bytes(msgspec.json.encode(program))
            more = {"order": order_of(last, subject.spec)}
        more["urgent"] = subject.settings.profile == "latency"
        interpreter = Interpreter(backend="torch", variant=variant, device=device, more=more)
        write_interpreter(folder, interpreter)

    def load(self, folder: Path, spec: ModelSpec, *, threads: int, trust_pickle: bool) -> Counting:
        """See `Backend.load`; what it opens was written by `prepare` and is data, not pickles."""
        interpreter = read_interpreter(folder)
        precision, _, device = interpreter.variant.partition("@")
        order: Order = interpreter.more["order"]
        urgent = bool(interpreter.more.get("urgent"))
        torch = _engine(threads)
        if device == "cuda" and not torch.cuda.is_available():
            raise NotApplicable("torch finds no GPU here")
        if (folder / MODULE).is_file():
            from serving.backends.torch_module import load_module

            return load_module(
                folder / MODULE, spec, order, precision, device or "cpu", urgent=urgent
            )
        from serving.backends.forest_torch import ForestModel

        program = msgspec.json.decode((folder / STEPS).read_bytes(), type=steps.Program)
        forest = forests.load(folder / FOREST)
        return ForestModel(forest, program, spec, order, precision, device or "cpu", urgent=urgent)


def _export(module: Any, subject: Subject, folder: Path) -> dict[str, Any]:
    """The module as an exported program: tensors and a graph, no Python of its own."""
    import torch

    example = torch.zeros(2, len(subject.spec.features), dtype=torch.float32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = torch.export.Dim("rows")
            program = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: rows},))
            torch.export.save(program, folder / MODULE)
    except Exception as error:  # the module's own code runs under the exporter
        raise NotApplicable(f"torch.export: {str(error).strip().splitlines()[0][:160]}") from None
    return {"order": list(range(len(subject.spec.classes)))}


def _engine(threads: int) -> Any:
    _require()
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return torch


def _cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _require() -> None:
    missing = [name for name in ("torch", "treelite") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotApplicable(f"install shelflife[torch]: {', '.join(missing)} is not here")
