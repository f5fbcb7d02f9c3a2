"""What a check says carries the loss: looked for only where it is worse, told where people look."""

from __future__ import annotations

from monitor.results import Cause
from monitor.wording import carried_line


def cause(kind: str, *columns: str, share: float) -> Cause:
    return Cause(
        kind=kind,  # type: ignore[arg-type]
        columns=columns,
        text="",
        gain=share,
        low=0.0,
        high=1.0,
        share=share,
        n=500,
    )


def test_the_incident_line_names_each_cause_and_its_share() -> None:
    line = carried_line(
        [
            cause("broken", "income", share=0.62),
            cause("shift", "age", "tenure", share=0.2),
            cause("segment", "age", "region", share=0.1),
            cause("prior", "y", share=0.05),
        ]
    )
    assert line == (
        "carried by: income broken (62 % of the rise), age or tenure shifted (20 %), "
        "a segment of age and region (10 %), the label mix (5 %)"
    )
