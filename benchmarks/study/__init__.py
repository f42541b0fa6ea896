"""What the quality study trains, begins with and claims.

arms        every arm, its length and its order
masked_lms  the masked LMs behind the committed rows
verdicts    the paper's claims and ours, beside the rows
"""
