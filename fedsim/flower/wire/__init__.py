"""What travels: a model as named arrays, and the rest of the work in records of our own.

Any ClientApp finds in a train message

    "arrays"  ArrayRecord   where it starts, under the model's names
    "config"  ConfigRecord  the user's own, and "server-round" (1, 2, ...)

and one that declared what it understands (see `client_app`), or is asked for more than to train from there, finds
besides, as far as there is any

    "fedsim"           ConfigRecord  t (0, 1, ...), key, reply ("delta" or "arrays"), mu, scale, shift, against,
                                     effort, ask, and where there are phases "phases" (their shares),
                                     "phases-count" and "phases-free" (see `phases_packed`)
    "fedsim.shift"     ArrayRecord   added to every local gradient
    "fedsim.velocity"  ArrayRecord   local momentum to start with
    "fedsim.other"     ArrayRecord   a second point, whose gradients times `against` are taken off
    "fedsim.scale"     ArrayRecord   scale and against where each parameter has its own, "fedsim.against"

A reply holds one ArrayRecord, the updated model, or instead "fedsim.delta", how far it moved: exact, where the
difference of two models is rounded. Answers to `ask` come as metrics "told.<name>" or ArrayRecords
"fedsim.told.<name>". A config's "honoured" lists which of shift, scale, mu, other, velocity, phases, effort and
"ask <name>" the training went by, and "each parameter" where scale is an ArrayRecord: an app that did not declare it
beforehand must say so.

A node that hosts many clients gets one message for all of its that are asked. "fedsim" then lists "who", their "keys",
"efforts" and, if they differ, "scale", "mu" and "against"; "arrays" and our records hold [k, ...] where they differ
from client to client ("each" lists which do), else what all have in common. The reply is "fedsim.delta" and
"fedsim.told.<name>" [k, ...], and metrics that are lists, in the order of its own "who".
"""

from __future__ import annotations

from fedsim.flower.wire.cohort import Cohort, pack_cohort, unpack_cohort
from fedsim.flower.wire.form import Form, array, share
from fedsim.flower.wire.words import (
    DELTA,
    OURS,
    TOLD,
    TOLD_METRIC,
    Unfit,
    first_line,
    foreign,
    honoured,
    number,
    only_arrays,
    ours,
    values,
)
from fedsim.flower.wire.work import needs, pack_work, phases_unpacked, unpack_work

__all__ = [
    "DELTA",
    "OURS",
    "TOLD",
    "TOLD_METRIC",
    "Cohort",
    "Form",
    "Unfit",
    "array",
    "first_line",
    "foreign",
    "honoured",
    "needs",
    "number",
    "only_arrays",
    "ours",
    "pack_cohort",
    "pack_work",
    "phases_unpacked",
    "share",
    "unpack_cohort",
    "unpack_work",
    "values",
]
