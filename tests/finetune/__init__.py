"""Tests of raycurate.finetune."""
