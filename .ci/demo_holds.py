"""The demo's promises, checked on the summary it wrote."""

import json
import sys
from pathlib import Path

found = json.loads(Path(sys.argv[1]).read_text())
promises = {
    "no request failed": found["requests_failed"] == 0,
    "every acknowledged row is in the log": found["rows_acknowledged"] <= found["rows_in_log"],
    "no row was shed": found["requests_sent"] == found["rows_in_log"],
    "all 29,083 invoices were asked about": found["requests_sent"] == 29_083,
    "served clearly below frozen": found["brier_served"] < 0.85 * found["brier_frozen"],
    "a run was promoted": found["promotions"] >= 1,
    "a decay paged": found["pages"] >= 1,
    "a drift paged nobody": found["tickets"] >= 1,
    "something was refused or not needed": found["rejected"] >= 1
    or any(event["kind"] == "not needed" for event in found["events"]),
    "no message was forged or lost": found["messages_refused"] == 0
    and found["messages_received"] >= found["pages"],
}
broken = [name for name, holds in promises.items() if not holds]
print(json.dumps({key: found[key] for key in found if isinstance(found[key], int | float)}))
sys.exit(f"the demo broke its promises: {broken}" if broken else 0)
