"""Configurations of other tools -> recipes: `raycurate import-config FILE ...`.

convert.py    files -> one recipe, checked
read.py       files -> plain mappings and what kind each is
rules.py      what a table of a tool's keys is made of, and the recipe that grows from it
automodel.py  NeMo AutoModel: bi-encoder training, mining
nemotron.py   the stages of the `nemotron embed` recipe
curator.py    NeMo Curator: the arguments of its semantic deduplication
writing.py    the recipe as YAML, each line with where it came from
"""

from __future__ import annotations

from raycurate.import_config.convert import Imported, import_config

__all__ = ["Imported", "import_config"]
