"""What the processes report of themselves, put together."""

from __future__ import annotations

import msgspec

from lightllm_mp.messages import Facts


def merge_facts(known: Facts, new: Facts) -> Facts:
    """`known` with every field that `new` sets (differs from the default); end-of-sequence ids are united."""
    default = Facts()
    changes = {
        field: getattr(new, field)
        for field in Facts.__struct_fields__
        if getattr(new, field) != getattr(default, field)
    }
    if known.eos_ids and new.eos_ids:
        changes["eos_ids"] = tuple(sorted({*known.eos_ids, *new.eos_ids}))
    return msgspec.structs.replace(known, **changes)
