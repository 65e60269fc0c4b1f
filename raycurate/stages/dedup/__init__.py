"""Clusters -> near-duplicates -> kept documents."""
