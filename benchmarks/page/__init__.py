"""The report: Markdown and pictures, from rows alone.

markdown          numbers and tables as text
plots             bars by part or kind, and ratios
comparisons       method against rival: memory saved, speed gained
targets           whether it is as much faster as it is meant to be
cost_sections     FLOPs
machine_sections  memory as simulated, speed as measured
engine_section    the auxiliary model's engines
products_section  what a step's products leave
replay_section    replacement paths
quality_plots     the study's pictures
quality_sections  the study
"""
