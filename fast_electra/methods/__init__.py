"""What is trained and on what: Fast-ELECTRA and its rivals, each turning a masked batch into a loss.

temperature  of the samples, as a function of the updates done
divergence   numbers gone wrong: broken losses, spikes, floors
metrics      sums on the device, divided when a step is logged
objectives   `frozen`, and those with another sampler or none
joint        the rivals that train their generator along
decoupled    joint training with two optimizers
replay       the method without its auxiliary model, on replacement paths
"""
