"""Bytes of a step, without the device it is for.

live_memory  bytes of live tensors by kind, at every operation
step         one training step of a case in plain torch
per_gpu      from one process's step to the bytes on each of n GPUs
"""
