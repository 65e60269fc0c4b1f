"""Clusters -> near-duplicates -> kept documents. `raycurate.deduplicate` is `dedup.stage.deduplicate`."""
