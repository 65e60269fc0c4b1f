"""The exact k best documents of each query, sharded and on Ray: the one top-k of the house.

`search` runs on Ray and hands out a block of queries after the other; `TopK` (raycurate.search.topk) is the same
without Ray; `pair_scores` gives single scores, the same numbers. `truncated` cuts vectors to their first dimensions.
Other engines: approximate.py (inverted lists), quantised.py (int8 and binary vectors, re-scored); and maxsim.py for
several vectors a text.
"""

from raycurate.search.distributed import pair_scores, search
from raycurate.search.hits import Hits, Limits
from raycurate.search.shards import VectorShards, truncated

__all__ = ["Hits", "Limits", "VectorShards", "pair_scores", "search", "truncated"]
