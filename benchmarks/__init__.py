"""Measurements and comparisons: each command is `python -m benchmarks.NAME`, and `--help` says what it takes.

A module imports only what stands above it; rooms list their own.

cases       what is compared: recipe, objective, row length, vocabulary
rows        result rows, each with its code, libraries and machine
costs       FLOPs of every case and what follows from them
memory      bytes of live tensors through a step, and on each GPU
contest     a case built for the clock as a run builds it, and the rival as scripts write it
study       the quality study's arms, masked LMs and claims
page        the report's sections, tables and pictures
simulate    command: peak memory of full-size steps, without a GPU
measure     command: tokens per second, MFU and memory, method and rivals in turn
replay      command: what replacement paths cost and save
overhead    command: what engine and loop cost beside the bare models
products    command: a step beside its own matrix products and attention
engines     command: the auxiliary model's engines side by side
separation  command: what keeping documents apart costs and leaves
parts       command: the loader and one sample, away from the model
judge       command: one judge for all arms of the study
quality     command: the study itself
report      command: one page from rows
"""
