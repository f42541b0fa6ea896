"""What a step costs, exact and before any model exists.

model_flops  FLOPs of one pass through a model, from its config
paper_flops  FLOPs as the ELECTRA paper counts them
flops        of a training step, by objective, model, pass and part
run_flops    of a run's tokens, for its MFU
"""
