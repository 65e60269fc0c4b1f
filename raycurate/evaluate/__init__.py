"""How well a model searches: BEIR's metrics over judged queries."""
