"""Pages of Prometheus text from several processes as one page, each sample with the name of the process it is from.

Prometheus counts a process that restarts as a counter that starts anew, but a sum over processes would fall when one
of them ends. So nothing is added up here: every series carries `replica`, and whoever asks adds up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SAMPLE = re.compile(rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{?)", re.MULTILINE)
_FAMILY = re.compile(rb"^(?=# HELP )", re.MULTILINE)
SILENT = "r2_router_replicas_silent"
REPLICA = "replica"


def labelled(page: bytes, replica: str) -> bytes:
    """`page` with `replica="..."` on every sample. The name must need no escape."""
    label = b'{%s="%s"' % (REPLICA.encode(), replica.encode())
    return _SAMPLE.sub(lambda found: found[1] + label + (b"," if found[2] else b"}"), page)


def merged(pages: Sequence[bytes], num_silent: int) -> bytes:
    """One page of labelled `pages`, the samples of a family together as the format demands.

    `num_silent` replicas gave no page; how many is a sample of its own, so that gaps in the others can be told from idleness.
    """
    families: dict[bytes, list[bytes]] = {}
    for page in pages:
        for block in _FAMILY.split(page)[1:]:
            help_line, type_line, *samples = block.splitlines(keepends=True)
            families.setdefault(help_line + type_line, []).extend(samples)
    silent = f"# HELP {SILENT} Router replicas whose metrics are missing on this page.\n# TYPE {SILENT} gauge\n{SILENT} {num_silent}\n"
    return b"".join([*(head + b"".join(samples) for head, samples in families.items()), silent.encode()])
