"""Files of any kind: read whole or refused, written whole or not at all.

json_file     JSON that may be damaged
staging       a folder that appears complete or not at all
compression   the bytes of a .gz, .xz or .zst
random_reads  rows at random out of memory maps larger than memory
"""
