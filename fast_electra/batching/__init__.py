"""From a corpus to endless masked batches, each a function of (seed, row number).

randomness  every random choice, a hash of (seed, stream, keys)
masking     which positions of a row are masked
separation  documents kept apart in packed rows
batches     weighted corpora to rows of tokens to masked batches
row_text    the text of a row, by its number
"""
