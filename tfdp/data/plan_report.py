"""A sharding plan in words: three lines for a log, a table for `tfdp shards`.

plan = sharding.make(files, pipelines=2, global_batch_size=64)
print("\\n".join(lines(plan, "train") + table(plan)))
"""

import os

from tfdp.data import sharding


def lines(plan: sharding.Plan, name: str) -> list[str]:
    """Return what is read and why, how the epoch ends, and the alternative: a line for each."""
    several = len(plan.shares) > 1
    count = f"{len(plan.shares)} pipelines" if several else "1 pipeline"
    records = "not counted" if plan.records is None else f"{plan.records:,} records"
    files = f"{len(plan.files):,} file" + "s" * (len(plan.files) != 1)
    if plan.steps is None:
        batches = f"batches of {plan.shares[0].batch}, as many as the data holds"
    else:
        batches = f"{plan.steps:,} batches of {plan.shares[0].batch} for each pipeline"
    if plan.dropped is None:
        end = "how they end is not known"
    elif plan.dropped:
        end = f"{plan.dropped:,} records dropped"
    else:
        empty = sum(share.empty or 0 for share in plan.shares)
        end = "every record once" + (f", {empty:,} batches without a row" if empty else "")
    spread = "" if plan.imbalance is None else f", imbalance {plan.imbalance:.2f}"
    return [
        f"Input {name}: policy {plan.policy} for {count}, {files}, {records}: {plan.reason}.",
        f"Input {name}: {batches}, {end}{spread}.",
        f"Input {name}: {plan.rejected or 'there is no alternative to choose from'}.",
    ]


def table(plan: sharding.Plan) -> list[str]:
    """Return a line for each pipeline, in columns, with a header."""
    names = ("worker", "files", "records", "batches", "first", "last", "MB read")
    rows: list[tuple[str, ...]] = [names]
    for share in plan.shares:
        batches = _number(plan.steps)
        if share.empty:
            batches += f" ({share.empty:,} empty)"
        ends = [_place(end) for end in (share.first, share.last)]
        read = f"{share.bytes / 1e6:,.1f}"
        rows.append(
            (
                str(share.pipeline),
                _number(len(share.files)),
                _number(share.records),
                batches,
                *ends,
                read,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if name in ("first", "last") else cell.rjust(width)
            for name, cell, width in zip(names, row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _place(end: tuple[str, int] | None) -> str:
    return "?" if end is None else f"{os.path.basename(end[0])}:{end[1]}"


def _number(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"
