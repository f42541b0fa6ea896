"""What is kept of a run: to go on with, on any number of processes, and to load elsewhere.

universal   DeepSpeed's universal form
layout      how the state of engines lies in a checkpoint
checkpoint  a folder with two integers and hashes
export      a folder that stock transformers loads
"""
