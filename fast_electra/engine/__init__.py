"""The edge: DeepSpeed's engines, several processes, and what an update takes there.

optim             learning rate and weight decay, as pure functions
deepspeed_config  DeepSpeed's JSON and the recipe, in agreement
shared_memory     what DeepSpeed leaves in a machine's shared memory
heap              memory that a step frees, kept for the next one
torchs_linear     torch's own linear layer for frozen models
broken_updates    gradients that are not finite train nothing
gradient_sums     an update's float32 sums, in few passes over memory
injection         DeepSpeed-Inference's kernels for the auxiliary model
buffers           where a model's buffers lie, and in which numbers
parallel          processes and engines
fetching          one process asks the hub, the others its cache
sharded_weights   weights in training, wherever their parts lie
stop_vote         a vote on stopping that no step waits for
auxiliary_engine  what the auxiliary model runs on, by parity and speed
"""
