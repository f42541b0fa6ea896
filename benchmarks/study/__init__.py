"""What the quality study trains, begins with and claims.

arms        every arm, its length and its order
masked_lms  the masked LMs behind the committed rows
arm_runs    an arm as programs
arm_rows    an arm as a row: what it learned, what it cost
verdicts    the paper's claims and ours, beside the rows
"""
