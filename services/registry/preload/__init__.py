"""Predictive preloading: which sleeping models to wake before they are asked for, and how long to keep those that are not.

1. `observe` is told of each request. `hazard.py` learns how likely a model's next request is at each moment after its last one.
2. `windows.py` turns that into the idle times at which the model is worth its memory, for many prices of memory at once.
3. `proof.py` keeps account of what each price would have cost and brought, beside the fixed keep-alive that the operator set, and
   says which one takes no more memory and has proven to spare cold starts. While none has, the fixed keep-alive holds.
4. The autoscaler asks `keep_alive_s` when a model idles, and `wanted` which ones to wake ahead.
5. `keeper.py` writes what was learned to etcd every few minutes while this registry leads, and reads it when it begins to lead.

All but `keeper.py` is pure; `bench preload` compares it with others over recorded traces, `bench simulate` runs it on virtual time.
"""

from .preloader import Preloader

__all__ = ["Preloader"]
