"""Replacement paths: what a masked position becomes at every temperature, computed once.

gumbel             noise that belongs to a position
replacement_paths  the paths of a row, from logits and noise
replacement_codec  rows of paths as bytes
replacement_shard  a shard of them, through its memory map
replacement_store  a folder of shards under a manifest
"""
